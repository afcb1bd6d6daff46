"""The implementation; imported only when a run has begun."""

from collections import defaultdict

import torch

from fourfold.artifact import ArtifactWriter
from fourfold.interfaces.quantizer import QuantizeJob, Quantizer
from fourfold.models.gemma4 import LinearModule
from fourfold.nvfp4 import global_scale_from_amax, quantize
from fourfold.progress import Progress
from fourfold_clipped.options import ClippedOptions


class ClippedQuantizer(Quantizer[ClippedOptions]):
    """Reads one scale group at a time, so memory is bounded by a group and a shard."""

    def quantize(self, job: QuantizeJob, artifact: ArtifactWriter, progress: Progress) -> None:
        """Write every target; modules of a scale group get one global scale, as a server fuses them."""
        groups: dict[str, list[LinearModule]] = defaultdict(list)
        for module in job.targets:
            groups[module.scale_group].append(module)
        progress.begin("quantize weights", total=len(job.targets), unit="module")
        for members in groups.values():
            weights = [module.read(job.source).float() for module in members]
            limit = torch.stack([weight.abs().amax() for weight in weights]).amax() * self.options.ratio
            global_scale = global_scale_from_amax(limit)
            for module, weight in zip(members, weights, strict=True):
                quantized = quantize(weight.clamp(-limit, limit), global_scale=global_scale)
                artifact.add_weight(module, quantized, input_global_scale=None)
                progress.advance(1)
