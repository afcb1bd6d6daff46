"""Decoded NVFP4 weights, a layer at a time: rounded here by the reference codec, or read from a checkpoint.

Shape letters: O out features, K in features.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import NamedTuple, Protocol

import torch

from fourfold.checkpoint.canonical import CanonicalFolder
from fourfold.checkpoint.index import TensorFolder
from fourfold.checkpoint.layouts import LAYOUTS
from fourfold.config import Recipe, Scheme
from fourfold.errors import CheckpointError, ConfigError
from fourfold.manifest import MANIFEST_FILE, Manifest, sha256_file
from fourfold.models.gemma4 import Gemma4Moe, LinearModule, ModuleName
from fourfold.nvfp4 import BlockScalePolicy, NVFP4Weight, quantize
from fourfold.targets import resolve_targets
from fourfold.verify.schemes import stated_schemes

#: Weights rounded at once: 16 M take about 0.5 GiB of float32 work space.
_BATCH_WEIGHTS = 2**24


class Decoded(NamedTuple):
    """One linear: its weight as NVFP4 has it, float32 [O, K], and its input scale, float32 [], if one is stored.

    ``weights_only``: its inputs stay BF16, also where W4A4 is measured.
    """

    module: LinearModule
    weight: torch.Tensor
    input_global_scale: torch.Tensor | None
    weights_only: bool = False


class WeightSource(Protocol):
    """Where decoded weights come from. ``targets`` are all quantized linears."""

    targets: tuple[LinearModule, ...]

    def decode(self, modules: tuple[LinearModule, ...]) -> Iterator[Decoded]:
        """Those linears, in any order, few in memory at a time."""


class CodecWeights:
    """Every linear of an unquantized model, rounded to nearest under amax scales, scale groups shared."""

    def __init__(self, source: TensorFolder, gemma: Gemma4Moe) -> None:
        self._source = source
        self.targets = resolve_targets(gemma, Recipe())

    def decode(self, modules: tuple[LinearModule, ...]) -> Iterator[Decoded]:
        """See :class:`WeightSource`. ``modules`` hold whole scale groups."""
        amax: dict[str, torch.Tensor] = {}
        for module in modules:
            found = module.read(self._source).abs().amax()
            amax[module.scale_group] = torch.maximum(found, amax.get(module.scale_group, found))
        for batch in _batches(modules):
            stacked = quantize(
                torch.stack([module.read(self._source) for module in batch]),
                global_amax=torch.stack([amax[module.scale_group] for module in batch]),
                policy=BlockScalePolicy.MODELOPT,
            )
            for module, weight in zip(batch, stacked.dequantize(), strict=True):
                yield Decoded(module, weight, None)


def _batches(modules: tuple[LinearModule, ...]) -> Iterator[list[LinearModule]]:
    """Modules of one shape, as many as may be rounded at once."""
    for shape, group in groupby(sorted(modules, key=lambda module: module.shape), key=lambda module: module.shape):
        same = list(group)
        size = max(1, _BATCH_WEIGHTS // (shape[0] * shape[1]))
        yield from (same[start : start + size] for start in range(0, len(same), size))


class CheckpointWeights:
    """The quantized linears of a checkpoint or artifact, whatever its layout.

    Raises :class:`CheckpointError` for a linear the source does not have in that shape, and for weights that were
    transformed on purpose before rounding: they are no approximation of the source's.
    """

    def __init__(self, checkpoint: CanonicalFolder, gemma: Gemma4Moe) -> None:
        self._checkpoint = checkpoint
        self.targets = tuple(self._target(name, gemma) for name in checkpoint.modules)
        self.manifest_sha256: str | None = None
        section = checkpoint.config.get("quantization_config")
        stated = stated_schemes(section if isinstance(section, dict) else {}, checkpoint.layout, checkpoint.modules)
        self._alone = {name for name, scheme in stated.items() if scheme is Scheme.W4A16}
        if (checkpoint.path / MANIFEST_FILE).is_file():
            manifest = Manifest.read(checkpoint.path)
            self.manifest_sha256 = sha256_file(checkpoint.path / MANIFEST_FILE)
            self._alone |= {name for name in checkpoint.modules if manifest.recipe.scheme_of(name) is Scheme.W4A16}
            if manifest.transformed:
                name, how = next(iter(manifest.transformed.items()))
                raise CheckpointError(
                    f"{checkpoint.path}: {name} was transformed before rounding ({how}), so its weights are no "
                    "approximation of the source's; such a checkpoint is measured by fourfold eval"
                )

    @property
    def scheme(self) -> Scheme:
        """W4A4 where input scales are stored of all modules but those that the config states to be of weights alone."""
        rounding = [module.name for module in self.targets if module.name not in self._alone]
        stored = all(f"{name}.input_global_scale" in self._checkpoint for name in rounding)
        return Scheme.W4A4 if rounding and stored else Scheme.W4A16

    def decode(self, modules: tuple[LinearModule, ...]) -> Iterator[Decoded]:
        """See :class:`WeightSource`."""
        read = self._checkpoint.read
        for module in modules:
            weight = NVFP4Weight(
                *(read(f"{module.name}.{part}") for part in ("packed_weight", "block_scale", "global_scale"))
            )
            name = f"{module.name}.input_global_scale"
            scale = read(name) if name in self._checkpoint else None
            yield Decoded(module, weight.dequantize(), scale, weights_only=module.name in self._alone)

    def _target(self, name: str, gemma: Gemma4Moe) -> LinearModule:
        module = gemma.linears.get(ModuleName(name))
        if module is None:
            raise CheckpointError(
                f"{self._checkpoint.path}: {name} is no linear of the source model; is --source right?"
            )
        _, columns = self._checkpoint.entry(f"{name}.packed_weight").shape
        shape = (self._checkpoint.entry(f"{name}.packed_weight").shape[0], 2 * columns)
        if shape != module.shape:
            raise CheckpointError(
                f"{self._checkpoint.path}: {name} is {list(shape)}, the source's is {list(module.shape)}; "
                "is --source right?"
            )
        return module


def is_quantized(folder: TensorFolder) -> bool:
    """Whether a folder holds NVFP4 scales of any layout, so that it is no source."""
    suffixes = tuple(f".{layout.global_scale}" for layout in LAYOUTS.values())
    return any(name.endswith(suffixes) for name in folder.tensors)


def require_scheme(wanted: Scheme | None, weights: WeightSource) -> Scheme:
    """The scheme to measure: as asked for, and for a checkpoint what it stores.

    Raises :class:`ConfigError` for W4A4 on a checkpoint without input scales.
    """
    if not isinstance(weights, CheckpointWeights):
        return wanted or Scheme.W4A4
    if wanted is Scheme.W4A4 and weights.scheme is Scheme.W4A16:
        raise ConfigError("scheme: the checkpoint stores no input scales (W4A16); leave --scheme out or say W4A16")
    return wanted or weights.scheme
