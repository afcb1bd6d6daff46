"""Writing a checkpoint in a layout from an artifact: the part every exporter shares."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fourfold.artifact import ENCODE_SCALES, Artifact
from fourfold.checkpoint.layouts import CANONICAL, Layout
from fourfold.checkpoint.stored import FileRanges
from fourfold.checkpoint.stream import DEFAULT_SHARD_BYTES, ShardWriter

if TYPE_CHECKING:
    import torch

    from fourfold.progress import Progress


def write_checkpoint(
    artifact: Artifact,
    destination: Path,
    layout: Layout,
    json_files: Mapping[str, Mapping[str, Any]],
    progress: Progress,
    *,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
) -> None:
    """Write ``artifact`` into ``destination`` under ``layout``, with ``json_files`` and the source's side files.

    Packed weights, block scales and kept tensors move byte for byte; only global scales change, by the layout's
    direction and shape. Memory is bounded by a shard.
    """
    tensors = artifact.tensors
    progress.begin(f"export {layout.name}", total=sum(e.nbytes for e in tensors), unit="B")
    shards = ShardWriter(destination, max_shard_bytes=max_shard_bytes)
    ranges = FileRanges(tensors)
    modules = frozenset(artifact.manifest.quantized_modules)
    for entry in tensors:
        module, _, suffix = entry.name.rpartition(".")
        if module in modules and suffix in CANONICAL.suffixes:
            shards.add(f"{module}.{getattr(layout, suffix)}", _stored(artifact, layout, module, suffix))
        elif module in modules and suffix in ENCODE_SCALES.values():
            pass  # read beside its scale, by a layout that stores divisors
        elif suffix in layout.kv_scales:
            scale = tensors.read(entry.name).reshape(layout.scalar_shape)
            shards.add(f"{module}.{layout.kv_scales[suffix]}", scale)
        else:
            shards.add_stored(entry.name, ranges.of(entry.name))
        progress.advance(entry.nbytes)
    shards.finish()
    for name, content in json_files.items():
        text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        (destination / name).write_text(text, encoding="utf-8")
    for name in tensors.side_files():
        shutil.copyfile(artifact.path / name, destination / name)


def _stored(artifact: Artifact, layout: Layout, module: str, suffix: str) -> torch.Tensor:
    """The tensor as ``layout`` stores it; a recorded divisor is preferred to the reciprocal of its scale."""
    tensor = artifact.tensors.read(f"{module}.{suffix}")
    if suffix not in ENCODE_SCALES:
        return tensor
    divisor = f"{module}.{ENCODE_SCALES[suffix]}"
    if layout.reciprocal and divisor in artifact.tensors:
        return artifact.tensors.read(divisor).reshape(layout.scalar_shape)
    return layout.to_stored(tensor)
