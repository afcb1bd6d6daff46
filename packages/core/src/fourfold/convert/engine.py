"""The conversion: what is refused, what is turned, what is written."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from fourfold.artifact import ENCODE_SCALES, GLOBAL_SCALE, INPUT_GLOBAL_SCALE
from fourfold.checkpoint.atomic import absolute, atomic_folder, require_free, require_space
from fourfold.checkpoint.canonical import CanonicalFolder
from fourfold.checkpoint.index import is_side_file
from fourfold.checkpoint.layouts import CANONICAL, LAYOUTS, get_layout, is_kv_scale
from fourfold.convert.report import ConvertReport, InexactScale
from fourfold.convert.view import CheckpointView
from fourfold.errors import CheckpointError, ConfigError
from fourfold.manifest import Component, Manifest, sha256_files
from fourfold.plugins import Registry, Role

if TYPE_CHECKING:
    from fourfold.progress import Progress

_FLOAT32_MIN_NORMAL = 2.0**-126
#: Types of tensors that travel as they are; anything else is some other quantization.
_PLAIN_DTYPES = frozenset({"BF16", "F16", "F32", "F64", "I64", "I32", "BOOL"})
#: Suffixes that mean a scale, a packing or a transform to some loader.
_SCALE_SUFFIXES = frozenset(
    {
        *(suffix for layout in LAYOUTS.values() for suffix in layout.suffixes if suffix != "weight"),
        "weight_zero_point", "weight_g_idx", "weight_shape", "input_zero_point", "output_scale", "pre_quant_scale",
        "q_scale", "prob_scale", "k_zero_point", "v_zero_point",
    }
)  # fmt: skip


def convert_checkpoint(
    path: Path, layout: str, destination: Path, registry: Registry, progress: Progress
) -> ConvertReport:
    """Write the checkpoint at ``path`` under ``layout`` into ``destination``; memory is bounded by a shard.

    Packed weights, block scales and kept tensors move byte for byte. Global and input scales become reciprocals
    where the layouts store them in opposite directions; those the way back would not restore are listed. The
    target's exporter writes config and ignore list; ``destination`` appears whole or not at all.

    Raises:
        UnknownNameError: no layout, or no exporter, of that name.
        ConfigError: the checkpoint already has that layout.
        CheckpointError: a file that is not what the manifest recorded; not quantized to NVFP4, parts missing, a scale
            that is zero, negative, denormal, infinite or NaN, or tensors quantized in some other way. Names the tensor.
        OutputError: the destination is not empty, or has too little space.
    """
    target, entry = get_layout(layout), registry.get(Role.EXPORTER, layout)
    view, destination = CheckpointView(Path(path)), absolute(destination)
    source = view.folder
    if source.layout is CANONICAL:
        raise CheckpointError(f"{path}: is an artifact, not a checkpoint; fourfold quantize --layout writes one")
    if source.layout.name == layout:
        raise ConfigError(f"{path}: has layout {layout} already; there is nothing to convert")
    _refuse_strangers(source)
    inexact, num_scales = _check_scales(source, turned=source.layout.reciprocal != target.reciprocal)
    if view.has_manifest:
        view.manifest.require_files(source.path)
    require_free(destination)
    require_space(destination, sum(e.nbytes for e in source if e.name.rpartition(".")[2] not in ENCODE_SCALES.values()))
    exporter = registry.load(Role.EXPORTER, layout)(entry.options())
    with atomic_folder(destination) as partial:
        exporter.export(view, partial, progress)
        _require_same_tensors(source, CanonicalFolder(partial))
        if view.has_manifest:
            _write_manifest(view.manifest, layout, partial)
    return ConvertReport(
        source_layout=source.layout.name,
        target_layout=layout,
        num_modules=len(source.modules),
        num_kept_tensors=sum(not source.is_part(e.name) for e in source),
        num_scales=num_scales,
        inexact=inexact,
        files_left_behind=_left_behind(source.path, destination),
    )


def _refuse_strangers(source: CanonicalFolder) -> None:
    """Refuse tensors that another layout could not carry: other formats, zero points, transforms."""
    modules = frozenset(source.modules)
    for entry in source:
        module, _, leaf = entry.name.rpartition(".")
        if source.is_part(entry.name) or leaf in CANONICAL.kv_scales:
            continue
        name = source.stored_name(entry.name)
        if entry.dtype not in _PLAIN_DTYPES:
            raise CheckpointError(
                f"{source.path}: {name} is stored as {entry.dtype} and is no part of an NVFP4 weight; "
                "only NVFP4 and unquantized tensors can be converted"
            )
        if leaf in _SCALE_SUFFIXES or (module in modules and leaf != "bias"):
            raise CheckpointError(f"{source.path}: {name} has no place in another layout; it cannot be converted")


def _check_scales(source: CanonicalFolder, *, turned: bool) -> tuple[tuple[InexactScale, ...], int]:
    """Refuse scales that cannot be meant or have no reciprocal; list those that reciprocals do not restore."""
    inexact, num_scales = [], 0
    for entry in source:
        module, _, leaf = entry.name.rpartition(".")
        is_scale = source.is_part(entry.name) and leaf in (GLOBAL_SCALE, INPUT_GLOBAL_SCALE)
        if not is_scale and leaf not in CANONICAL.kv_scales:
            continue
        if not is_scale and not is_kv_scale(entry):
            raise CheckpointError(
                f"{source.path}: {source.stored_name(entry.name)} is {entry.dtype} {list(entry.shape)}; a KV scale is "
                "one number in F32, BF16 or F16: calibrate the KV cache again"
            )
        exact = f"{module}.{ENCODE_SCALES[leaf]}" if is_scale and source.layout.reciprocal else entry.name
        stored = source.read(exact)
        _check_scale(source, exact, stored.item())
        if is_scale and turned:
            num_scales += 1
            written = stored.reciprocal()
            restored = written.reciprocal()
            if restored.item() != stored.item():
                inexact.append(
                    InexactScale(
                        tensor=source.stored_name(exact),
                        stored=stored.item(),
                        written=written.item(),
                        restored=restored.item(),
                    )
                )
    return tuple(inexact), num_scales


def _check_scale(source: CanonicalFolder, name: str, value: float) -> None:
    if math.isfinite(value) and value > 0 and _FLOAT32_MIN_NORMAL <= value <= 1 / _FLOAT32_MIN_NORMAL:
        return
    what = "denormal, or its reciprocal is" if math.isfinite(value) and value > 0 else "not positive and finite"
    raise CheckpointError(
        f"{source.path}: {source.stored_name(name)} is {value:g}: {what}; quantize or calibrate this module again"
    )


def _require_same_tensors(source: CanonicalFolder, written: CanonicalFolder) -> None:
    """Nothing lost and nothing made up, by name, type and shape."""
    encode = tuple(ENCODE_SCALES.values())
    expected, found = (
        {(e.name, e.dtype, e.shape) for e in folder if e.name.rpartition(".")[2] not in encode}
        for folder in (source, written)
    )
    if expected != found:
        name, dtype, shape = min(expected ^ found)
        state = "lost or changed" if (name, dtype, shape) in expected else "made up"
        raise CheckpointError(
            f"{source.path}: the exporter {state} {name} {dtype} {list(shape)} ({len(expected ^ found)} such)"
        )


def _write_manifest(manifest: Manifest, layout: str, folder: Path) -> None:
    note = f"converted from layout {manifest.layout}"
    manifest.model_copy(
        update={
            "layout": layout,
            "exporter": Component(name=layout),
            "notes": (*manifest.notes, note),
            "files": sha256_files(folder),
        }
    ).write(folder)


def _left_behind(source: Path, destination: Path) -> tuple[str, ...]:
    present = {p.name for p in destination.iterdir()}
    return tuple(
        sorted(
            p.name
            for p in source.iterdir()
            if p.is_file() and p.name not in present and not is_side_file(p.name) and ".safetensors" not in p.name
        )
    )
