"""How the good checkpoints are made, and how a fault is planted in one, whatever its layout."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from fourfold.artifact import Artifact, ArtifactWriter
from fourfold.checkpoint.index import TensorFolder
from fourfold.checkpoint.layouts import COMPRESSED_TENSORS, LAYOUTS, Layout
from fourfold.config import KVCache, Recipe, Scheme
from fourfold.export import write_checkpoint
from fourfold.interfaces.quantizer import QuantizeJob
from fourfold.manifest import sha256_files
from fourfold.models.gemma4 import LinearModule, read_gemma4
from fourfold.nvfp4 import BlockScalePolicy, global_scale_from_amax, quantize
from fourfold.nvfp4.constants import GLOBAL_SCALE_DIVISOR
from fourfold.progress import NoProgress

from .good_configs import KEYS_AS_VALUES as KEYS_AS_VALUES
from .good_configs import TEXT as TEXT
from .good_configs import config_files
from .source_model import EXPERTS as EXPERTS
from .source_model import LAYERS as LAYERS

EXPERT = f"{TEXT}.1.experts.5"


@dataclass(frozen=True)
class Variant:
    """One kind of good checkpoint."""

    layout: str
    scheme: Scheme = Scheme.W4A4
    kv_cache: KVCache = KVCache.NONE
    targets: str = "all-linear"
    sharded: bool = False
    policy: BlockScalePolicy = BlockScalePolicy.FOURFOLD
    exclude: tuple[str, ...] = ()
    headroom: bool = False
    weights_only: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """For test ids."""
        parts = [self.layout, self.scheme, f"kv-{self.kv_cache}", self.targets, self.policy.value]
        marks = {"sharded": self.sharded, "headroom": self.headroom}
        parts += ["without-" + "-".join(re.findall(r"\w+", pattern)) for pattern in self.exclude]
        parts += [pattern.strip("*.") + "-alone" for pattern in self.weights_only]
        return "-".join([*map(str, parts), *(mark for mark, is_set in marks.items() if is_set)])


def build(source: TensorFolder, variant: Variant, folder: Path) -> Path:
    """Quantize and export; returns the checkpoint's folder."""
    artifact_path, checkpoint = folder / "artifact", folder / "checkpoint"
    artifact_path.mkdir()
    checkpoint.mkdir()
    _quantize(source, variant, artifact_path)
    artifact = Artifact(artifact_path)
    files = config_files(artifact, variant)
    size = 2**16 if variant.sharded else 2**30
    write_checkpoint(artifact, checkpoint, LAYOUTS[variant.layout], files, NoProgress(), max_shard_bytes=size)
    record = {"kind": "checkpoint", "layout": variant.layout, "files": sha256_files(checkpoint)}
    artifact.manifest.model_copy(update=record).write(checkpoint)
    return checkpoint


def _quantize(source: TensorFolder, variant: Variant, folder: Path) -> None:
    gemma = read_gemma4(source)
    recipe = Recipe.parse(
        {
            "scheme": variant.scheme,
            "kv_cache": variant.kv_cache,
            "targets": variant.targets,
            "exclude": variant.exclude,
            "weights_only": variant.weights_only,
        },
        where="",
    )
    patterns = recipe.all_excludes
    targets = tuple(
        m for m in gemma.linears.values() if not any(Path(m.name).match(p) or fnmatchcase(m.name, p) for p in patterns)
    )
    amax: dict[str, torch.Tensor] = defaultdict(lambda: torch.zeros((), dtype=torch.bfloat16))
    for module in targets:
        amax[module.scale_group] = torch.maximum(amax[module.scale_group], module.read(source).abs().amax())
    job = QuantizeJob(
        model_path=source.path, source=source, gemma=gemma, targets=targets, recipe=recipe, tokens=None, batch_size=1,
        unfuser_name="none", unfuser=None, device="cpu", seed=0,
    )  # fmt: skip
    writer = ArtifactWriter(folder, job)
    for module in targets:
        scale = global_scale_from_amax(amax[module.scale_group], variant.policy)
        weight = quantize(module.read(source), global_scale=scale, policy=variant.policy)
        own = _input_amax(module, variant.headroom) / GLOBAL_SCALE_DIVISOR
        alone = any(fnmatchcase(module.name, pattern) for pattern in variant.weights_only)
        writer.add_weight(module, weight, own if variant.scheme is Scheme.W4A4 and not alone else None)
    if variant.kv_cache is KVCache.FP8:
        for layer in range(LAYERS):
            writer.add_kv_scales(f"{TEXT}.{layer}.self_attn", 0.01, 0.02)
    writer.finish(
        {
            "source_files": sha256_files(source.path), "packages": {"fourfold": "0.1.0"},
            "unfuser": {"name": "none"}, "quantizer": {"name": "codec"},
        }
    )  # fmt: skip


def _input_amax(module: LinearModule, headroom: bool) -> float:
    """What calibration would give: each scale group its own; 3 to 6 after a norm, more before ``down``.

    With headroom, 16384 times a low percentile of the inputs' block amaxes, as ModelOpt's act-headroom has on the demo.
    """
    place = (len(module.scale_group) % 7 + (module.expert or 0)) / 19
    down = module.projection == "down_proj"
    if headroom:
        return (2_700 if down else 19_000) * (1 + place / 4)
    return (40 if down else 3) * (1 + place)


@dataclass
class Editable:
    """A checkpoint in one shard whose tensors and configs can be changed by canonical name; ``save`` writes it."""

    folder: Path
    variant: Variant
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.variant.sharded:
            self.tensors = load_file(self.folder / "model.safetensors")
        self.config = self.json("config.json")

    @property
    def layout(self) -> Layout:
        """Names and directions."""
        return LAYOUTS[self.variant.layout]

    @property
    def is_modelopt(self) -> bool:
        """Whether a fault has to be worded in ModelOpt's keys."""
        return self.layout is not COMPRESSED_TENSORS

    @cached_property
    def hf(self) -> dict[str, Any]:
        """hf_quant_config.json."""
        return self.json("hf_quant_config.json")

    def json(self, name: str) -> dict[str, Any]:
        """A JSON file."""
        return json.loads((self.folder / name).read_text(encoding="utf-8"))

    def write_json(self, name: str, content: object) -> None:
        """Replace a JSON file."""
        (self.folder / name).write_text(json.dumps(content, indent=1), encoding="utf-8")

    def key(self, module: str, part: str) -> str:
        """Name of a module's canonical part in this layout."""
        return f"{module}.{getattr(self.layout, part)}"

    def part(self, module: str, part: str) -> torch.Tensor:
        """A module's part as stored."""
        return self.tensors[self.key(module, part)]

    def put(self, module: str, part: str, value: torch.Tensor) -> None:
        """Replace a module's part by what is to be stored."""
        self.tensors[self.key(module, part)] = value.contiguous()

    def scale_by(self, module: str, part: str, factor: float) -> None:
        """Multiply a scale, in decode direction."""
        stored = self.part(module, part)
        self.put(module, part, stored / factor if self.layout.reciprocal else stored * factor)

    def fill(self, module: str, part: str, value: float) -> None:
        """Store ``value`` itself, in the part's dtype and shape."""
        self.put(
            module,
            part,
            torch.full_like(self.part(module, part).float(), value).to(self.part(module, part).dtype),
        )

    def swap(self, first: str, second: str) -> None:
        """Exchange all parts of two modules."""
        for part in ("packed_weight", "block_scale", "global_scale", "input_global_scale"):
            a, b = self.key(first, part), self.key(second, part)
            if a in self.tensors:
                self.tensors[a], self.tensors[b] = self.tensors[b], self.tensors[a]

    def requantize(self, module: str, weight: torch.Tensor) -> None:
        """Quantize another weight into a module, under its global scale."""
        scale = self.layout.from_stored(self.part(module, "global_scale"))
        if float(weight.abs().max()) > float(scale) * 2688:
            weight = weight * (float(scale) * 2688 / float(weight.abs().max()))
        new = quantize(weight, global_scale=scale)
        self.put(module, "packed_weight", new.packed_weight)
        self.put(module, "block_scale", new.block_scale)

    @property
    def section(self) -> dict[str, Any]:
        """quantization_config."""
        return self.config["quantization_config"]

    def ignore(self, edit: str, *, remove: str | None = None) -> None:
        """Change the ignore list everywhere it stands: add ``edit``, or put it in the place of ``remove``."""
        lists = [self.section["ignore"]] + ([self.hf["quantization"]["exclude_modules"]] if self.is_modelopt else [])
        if len(lists) == 2 and lists[0] is lists[1]:
            lists.pop()
        for listed in lists:
            if remove is not None:
                listed[:] = [entry for entry in listed if remove not in entry]
            if edit:
                listed.append(edit)

    def save(self) -> Path:
        """Write tensors and configs back."""
        if not self.variant.sharded:
            # Cloned: a fault may store one tensor under two names.
            tensors = {name: tensor.clone() for name, tensor in self.tensors.items()}
            save_file(tensors, self.folder / "model.safetensors", metadata={"format": "pt"})
        self.write_json("config.json", self.config)
        if self.is_modelopt:
            self.write_json("hf_quant_config.json", self.hf)
        return self.folder
