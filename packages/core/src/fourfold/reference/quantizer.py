"""The built-in quantizer: weights alone, a batch of scale groups at a time; no model is loaded.

Scales come from the largest absolute value of a scale group, in ModelOpt's order of operations
(:class:`fourfold.nvfp4.BlockScalePolicy`), so the result is bit-equal to ModelOpt's ``max``. Resident memory is
bounded by a shard, whatever the model's size.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import TYPE_CHECKING

from fourfold.errors import QuantizationError
from fourfold.interfaces.quantizer import QuantizeJob, Quantizer
from fourfold.nvfp4 import BlockScalePolicy, NVFP4Weight, global_scale_from_amax, quantize
from fourfold.reference.options import ReferenceQuantizerOptions

if TYPE_CHECKING:
    from fourfold.artifact import ArtifactWriter
    from fourfold.checkpoint.index import TensorFolder
    from fourfold.models.gemma4 import LinearModule
    from fourfold.progress import Progress

_POLICY = BlockScalePolicy.MODELOPT
#: Weights rounded at once: 16 M take about 0.5 GiB of float32 work space.
_BATCH_WEIGHTS = 2**24


class ReferenceQuantizer(Quantizer[ReferenceQuantizerOptions]):
    """Scheme W4A16 with algorithm ``max``."""

    def quantize(self, job: QuantizeJob, artifact: ArtifactWriter, progress: Progress) -> None:
        """See :class:`fourfold.interfaces.quantizer.Quantizer`."""
        progress.begin("quantize weights", total=len(job.targets), unit="module")
        for batch in _batches(job.targets):
            for module, weight in _quantize(batch, job.source):
                artifact.add_weight(module, weight, input_global_scale=None)
                progress.advance(1)


def _batches(targets: tuple[LinearModule, ...]) -> Iterator[list[tuple[LinearModule, ...]]]:
    """Scale groups of one layer whose members have equal shapes, as many as a batch may hold."""
    by_group = sorted(targets, key=lambda module: (module.layer, module.scale_group))
    groups = [tuple(members) for _, members in groupby(by_group, key=lambda module: module.scale_group)]
    batch: list[tuple[LinearModule, ...]] = []
    # Sorting by shape as well brings a layer's experts together; it is stable, so layers stay in order.
    for group in sorted(groups, key=_signature):
        numel = sum(module.numel for module in group)
        if batch and (_signature(group) != _signature(batch[0]) or (len(batch) + 1) * numel > _BATCH_WEIGHTS):
            yield batch
            batch = []
        batch.append(group)
    yield batch


def _signature(group: tuple[LinearModule, ...]) -> tuple[int, tuple[tuple[int, int], ...]]:
    return group[0].layer, tuple(module.shape for module in group)


def _quantize(
    batch: list[tuple[LinearModule, ...]], source: TensorFolder
) -> Iterator[tuple[LinearModule, NVFP4Weight]]:
    """Every member of every group, its group's global scale shared."""
    import torch

    positions = tuple(zip(*batch, strict=True))
    weights = [torch.stack([module.read(source) for module in modules]) for modules in positions]
    amaxes = torch.stack([weight.abs().amax(dim=(-2, -1)).float() for weight in weights])
    try:
        global_scales = global_scale_from_amax(amaxes.amax(dim=0), _POLICY)
    except ValueError as error:
        worst = int(amaxes.amax(dim=0).argmin())
        raise QuantizationError(f"{batch[worst][0].name}: {error}") from None
    for modules, weight in zip(positions, weights, strict=True):
        stacked = quantize(weight, global_scale=global_scales, policy=_POLICY)
        parts = (stacked.packed_weight, stacked.block_scale, stacked.global_scale)
        for module, part in zip(modules, zip(*parts, strict=True), strict=True):
            yield module, NVFP4Weight(*part)
