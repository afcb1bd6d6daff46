"""The built-in quantizer: weights alone, read, rounded and written one scale group at a time; no model is loaded.

Scales come from the largest absolute value of a scale group, in ModelOpt's order of operations
(:class:`fourfold.nvfp4.BlockScalePolicy`), so the result is bit-equal to ModelOpt's ``max``. Resident memory is
bounded by a shard, whatever the model's size.
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from fourfold.errors import QuantizationError
from fourfold.interfaces.quantizer import QuantizeJob, Quantizer
from fourfold.nvfp4 import BlockScalePolicy, global_scale_from_amax, quantize
from fourfold.reference.options import ReferenceQuantizerOptions

if TYPE_CHECKING:
    import torch

    from fourfold.artifact import ArtifactWriter
    from fourfold.models.gemma4 import LinearModule
    from fourfold.progress import Progress

_POLICY = BlockScalePolicy.MODELOPT


class ReferenceQuantizer(Quantizer[ReferenceQuantizerOptions]):
    """Scheme W4A16 with algorithm ``max``."""

    def quantize(self, job: QuantizeJob, artifact: ArtifactWriter, progress: Progress) -> None:
        """See :class:`fourfold.interfaces.quantizer.Quantizer`."""
        progress.begin("quantize weights", total=len(job.targets), unit="module")
        # Members of a group share a layer, and sorting keeps layers in order.
        by_group = sorted(job.targets, key=lambda module: (module.layer, module.scale_group))
        for _, members in groupby(by_group, key=lambda module: module.scale_group):
            weights = [(module, module.read(job.source)) for module in members]
            global_scale = _shared_scale(weights)
            for module, weight in weights:
                quantized = quantize(weight, global_scale=global_scale, policy=_POLICY)
                artifact.add_weight(module, quantized, input_global_scale=None)
                progress.advance(1)


def _shared_scale(weights: list[tuple[LinearModule, torch.Tensor]]) -> torch.Tensor:
    import torch

    amaxes = torch.stack([weight.abs().amax().float() for _, weight in weights])
    try:
        return global_scale_from_amax(amaxes.amax(), _POLICY)
    except ValueError as error:
        raise QuantizationError(f"{weights[0][0].name}: {error}") from None
