"""The artifact: quantized weights in their canonical form, between any quantizer and any exporter.

A folder of safetensors with, for every quantized module ``M``,

=======================  =================  ==========================================
``M.packed_weight``      uint8 [O, K/2]     two E2M1 codes a byte, low nibble = even column
``M.block_scale``        float8_e4m3 [O, K/16]  multiplies on decode
``M.global_scale``       float32 []         multiplies on decode
``M.input_global_scale`` float32 []         the same for activations; W4A4 only
=======================  =================  ==========================================

Where a toolchain's own scale is a divisor that no float32 ``global_scale`` gives back exactly as its reciprocal,
that divisor stands beside it as ``M.global_encode_scale`` or ``M.input_global_encode_scale``.

Every other source tensor stands under its own name, byte for byte, with the source's config and side files, and
the manifest.
With an FP8 KV cache, ``<attention module>.k_scale`` and ``.v_scale`` (float32 []) are there too.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fourfold.checkpoint.index import CONFIG_FILE, TensorFolder
from fourfold.checkpoint.layouts import CANONICAL, ENCODE_SUFFIXES
from fourfold.checkpoint.stored import FileRanges
from fourfold.checkpoint.stream import DEFAULT_SHARD_BYTES, ShardWriter
from fourfold.config import KVCache, Scheme
from fourfold.errors import CheckpointError, QuantizationError
from fourfold.manifest import Fallback, Fate, Manifest, TensorFate, sha256_file, sha256_files
from fourfold.models.gemma4 import LinearModule, ModuleName
from fourfold.targets import require_whole_groups

if TYPE_CHECKING:
    import torch

    from fourfold.interfaces.quantizer import QuantizeJob
    from fourfold.nvfp4 import NVFP4Weight

PACKED_WEIGHT, BLOCK_SCALE, GLOBAL_SCALE, INPUT_GLOBAL_SCALE = CANONICAL.suffixes
#: Exact divisors beside a scale, where its reciprocal is not exact.
ENCODE_SCALES = dict(zip((GLOBAL_SCALE, INPUT_GLOBAL_SCALE), ENCODE_SUFFIXES, strict=True))


class ArtifactWriter:
    """Where a quantizer puts its results, one module at a time; memory is bounded by a shard.

    Each call checks its values: right shapes, finite and positive scales. :meth:`finish` copies the kept tensors
    and refuses while a target is missing, so nothing is lost in silence.
    """

    def __init__(self, folder: Path, job: QuantizeJob, *, max_shard_bytes: int = DEFAULT_SHARD_BYTES) -> None:
        # A job made by hand has not been through resolve_targets; what is left out of a fused tensor would be lost.
        require_whole_groups(job.gemma, job.targets, job.recipe)
        self.folder, self._job = folder, job
        self._shards = ShardWriter(folder, max_shard_bytes=max_shard_bytes, digest=sha256_file)
        self._missing = {module.name: module for module in job.targets}
        self._targets = frozenset(self._missing)
        self._kv_missing = self._attention_modules() if job.recipe.kv_cache is KVCache.FP8 else set()
        self._token_counts: dict[str, tuple[int, ...]] = {}
        self._fallbacks: list[Fallback] = []
        self._transformed: dict[str, str] = {}
        self._notes: list[str] = []

    def _attention_modules(self) -> set[str]:
        return {m.name.rsplit(".", 1)[0] for m in self._job.gemma.linears.values() if m.projection == "k_proj"}

    def add_weight(
        self,
        module: LinearModule,
        weight: NVFP4Weight,
        input_global_scale: torch.Tensor | float | None,
        *,
        encode_scale: torch.Tensor | float | None = None,
        input_encode_scale: torch.Tensor | float | None = None,
    ) -> None:
        """One target's canonical tensors; ``input_global_scale`` exactly when its scheme is W4A4.

        The encode scales are a toolchain's own divisors; each is stored only where ``1 / scale`` is not it.
        """
        import torch

        if module.name not in self._missing:
            known = "twice" if module.name in self._targets else "though it is no target"
            raise QuantizationError(f"{module.name}: was written {known}")
        if tuple(weight.shape) != module.shape:
            raise QuantizationError(f"{module.name}: shape {list(weight.shape)}, expected {list(module.shape)}")
        scheme = self._job.recipe.scheme_of(module.name)
        if (input_global_scale is None) is (scheme is Scheme.W4A4):
            expected = "needs one" if scheme is Scheme.W4A4 else "has none"
            raise QuantizationError(f"{module.name}: scheme {scheme} {expected}: input_global_scale")
        del self._missing[module.name]
        self._shards.add(f"{module.name}.{PACKED_WEIGHT}", weight.packed_weight)
        self._shards.add(f"{module.name}.{BLOCK_SCALE}", weight.block_scale)
        self._add_scale(module.name, GLOBAL_SCALE, weight.global_scale, encode_scale)
        if input_global_scale is not None:
            scale = torch.as_tensor(input_global_scale)
            self._add_scale(module.name, INPUT_GLOBAL_SCALE, scale, input_encode_scale)

    def _add_scale(
        self, module: str, kind: str, value: torch.Tensor, encode_scale: torch.Tensor | float | None
    ) -> None:
        import torch

        scale = _positive_scalar(value, f"{module}.{kind}")
        self._shards.add(f"{module}.{kind}", scale)
        if encode_scale is not None:
            name = f"{module}.{ENCODE_SCALES[kind]}"
            divisor = _positive_scalar(torch.as_tensor(encode_scale), name)
            if not torch.equal(scale.reciprocal(), divisor):
                self._shards.add(name, divisor)

    def add_kv_scales(self, attention: str, k_scale: torch.Tensor | float, v_scale: torch.Tensor | float) -> None:
        """FP8 scales of one layer's keys and values, decode direction; ``attention`` is ``...layers.N.self_attn``."""
        import torch

        if attention not in self._kv_missing:
            raise QuantizationError(f"{attention}: KV scales were not asked for, or given before")
        self._kv_missing.remove(attention)
        for name, value in (("k_scale", k_scale), ("v_scale", v_scale)):
            self._shards.add(f"{attention}.{name}", _positive_scalar(torch.as_tensor(value), f"{attention}.{name}"))

    def record_expert_tokens(self, layer: int, counts: torch.Tensor | list[int]) -> None:
        """Calibration tokens routed to each expert of a layer, int [E]."""
        self._token_counts[self._job.gemma.experts_module(layer)] = tuple(int(n) for n in counts)

    def record_fallback(self, module: ModuleName | str, rule: str, detail: str) -> None:
        """Say that a value of ``module`` was derived by ``rule`` instead of measured."""
        self._fallbacks.append(Fallback(module=str(module), rule=rule, detail=detail))

    def record_transformed(self, module: ModuleName | str, how: str) -> None:
        """Say that a module's weight was changed on purpose before rounding, its partner's to match (AWQ and kin).

        The verifier then compares its decoded weight to the source's under factors of its rows or columns, which it
        finds in the weight and which must cancel against the partner's (FF099); nothing else about it is believed.
        """
        self._transformed[str(module)] = how

    def note(self, text: str) -> None:
        """A remark that belongs to the result, such as a quantizer's own peculiarity."""
        if text not in self._notes:
            self._notes.append(text)

    def finish(self, facts: Mapping[str, object]) -> Manifest:
        """Copy the kept tensors and side files, write the manifest. ``facts`` are its remaining fields."""
        if self._missing or self._kv_missing:
            missing = sorted([*self._missing, *self._kv_missing])
            raise QuantizationError(f"the quantizer left out {missing[0]} ({len(missing)} missing)")
        fates = self._copy_kept()
        self._shards.finish()
        source = self._job.source
        for name in (CONFIG_FILE, *source.side_files()):
            shutil.copyfile(source.path / name, self.folder / name)
        manifest = Manifest.parse(
            {
                "kind": "artifact",
                "layout": "canonical",
                "recipe": self._job.recipe.model_dump(mode="json"),
                "seed": self._job.seed,
                "tensors": {name: fate.model_dump(mode="json") for name, fate in sorted(fates.items())},
                "quantized_modules": tuple(m.name for m in self._job.targets),
                "expert_token_counts": dict(sorted(self._token_counts.items())),
                "fallbacks": tuple(f.model_dump() for f in self._fallbacks),
                "transformed": dict(sorted(self._transformed.items())),
                "notes": tuple(self._notes),
                "files": sha256_files(self.folder, known=self._shards.digests),
                **facts,
            },
            where="manifest",
        )
        manifest.write(self.folder)
        return manifest

    def _copy_kept(self) -> dict[str, TensorFate]:
        """Copy what no target covers."""
        source = self._job.source
        quantized = {m.tensor for m in self._job.targets}
        fates: dict[str, TensorFate] = {}
        ranges = FileRanges(source)
        for entry in source:
            if entry.name in quantized:
                fates[entry.name] = TensorFate(fate=Fate.QUANTIZED)
            else:
                fates[entry.name] = TensorFate(fate=Fate.KEPT)
                self._shards.add_stored(entry.name, ranges.of(entry.name))
        return fates


def _positive_scalar(value: torch.Tensor, name: str) -> torch.Tensor:
    import torch

    scalar = value.detach().to(device="cpu", dtype=torch.float32).reshape(-1)
    if scalar.numel() != 1:
        raise QuantizationError(f"{name}: one value expected, shape {list(value.shape)}")
    if not math.isfinite(number := scalar.item()) or number <= 0:
        raise QuantizationError(f"{name}: {number} is no scale; it must be finite and positive")
    return scalar.reshape(())


class Artifact:
    """An artifact on disk, read one tensor at a time."""

    def __init__(self, folder: Path) -> None:
        self.path = Path(folder)
        self.manifest = Manifest.read(self.path)
        if self.manifest.kind != "artifact":
            raise CheckpointError(f"{self.path}: a {self.manifest.kind}, not an artifact")
        self.tensors = TensorFolder(self.path)

    @property
    def source_config(self) -> dict[str, object]:
        """The source's config.json."""
        return json.loads(json.dumps(self.tensors.config))  # type: ignore[no-any-return]

    def weight(self, module: str) -> NVFP4Weight:
        """A quantized module's weight."""
        from fourfold.nvfp4 import NVFP4Weight

        return NVFP4Weight(*(self.tensors.read(f"{module}.{k}") for k in (PACKED_WEIGHT, BLOCK_SCALE, GLOBAL_SCALE)))

    def input_global_scale(self, module: str) -> torch.Tensor | None:
        """A quantized module's activation scale, float32 [], or None in a weights-only artifact."""
        name = f"{module}.{INPUT_GLOBAL_SCALE}"
        return self.tensors.read(name) if name in self.tensors else None

    def kept(self) -> tuple[str, ...]:
        """Names of the tensors that belong to no quantized module, in file order."""
        suffixes = (PACKED_WEIGHT, BLOCK_SCALE, GLOBAL_SCALE, INPUT_GLOBAL_SCALE, *ENCODE_SCALES.values())
        return tuple(e.name for e in self.tensors if e.name.rsplit(".", 1)[-1] not in suffixes)

    def kept_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the tensors that belong to no quantized module, by name, in file order."""
        return {name: self.tensors.entry(name).shape for name in self.kept()}
