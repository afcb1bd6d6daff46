"""Experts that saw too few tokens: what llm-compressor does with them, and what is stored instead.

Left alone, it keeps uninitialized memory as such an expert's activation scale, and GPTQ sets its weights to
zero (every column of an empty Hessian is "dead"). Neither is an error there, and neither may reach a
checkpoint.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from compressed_tensors.offload import update_offload_parameter
from llmcompressor.modifiers.quantization.calibration import initialize_observer, observe, update_qparams
from llmcompressor.observers import fuse_weight_observers

from fourfold.config import RareExpertRule
from fourfold.errors import QuantizationError
from fourfold_llmcompressor.options import SMOOTHING, LlmcompressorOptions

if TYPE_CHECKING:
    from torch import nn

    from fourfold.artifact import ArtifactWriter
    from fourfold.interfaces.quantizer import QuantizeJob
    from fourfold.models.gemma4 import LinearModule

#: (layer, expert)
Expert = tuple[int, int]

#: How the weights of a rare expert are quantized where the algorithm learns them from activations.
_RARE_WEIGHTS = {
    "gptq": "round-to-nearest",
    "imatrix-mse": "uniform-mse",
    "expanded-imatrix": "uniform-mse",
}


class RareExperts:
    """The target experts with fewer tokens than the recipe asks for, or none in the algorithm's own pass.

    ``counts`` are int [E] by layer, ``divisors`` llm-compressor's activation scales by module (float32 [],
    NaN where it observed nothing; none of modules in W4A16). Raises :class:`QuantizationError` where the recipe's rule
    is ``error``, or where the algorithm has no way out.
    """

    def __init__(
        self,
        job: QuantizeJob,
        options: LlmcompressorOptions,
        counts: Mapping[int, torch.Tensor],
        divisors: Mapping[str, torch.Tensor],
    ) -> None:
        self._counts = counts
        self._weight_rule = _RARE_WEIGHTS.get(options.algorithm)
        self.experts = frozenset(
            (module.layer, module.expert)
            for module in job.targets
            if module.expert is not None
            and (
                counts[module.layer][module.expert] < _least(job, options)
                or bool(torch.isnan(divisors.get(module.name, torch.tensor(0.0))))
            )
        )
        if self.experts:
            self._refuse(job, options)
        self.divisors = _layer_max(job, divisors, self.experts) if divisors and self.experts else {}

    def _refuse(self, job: QuantizeJob, options: LlmcompressorOptions) -> None:
        layer, expert = min(self.experts)
        saw = (
            f"layer {layer}, expert {expert} saw {int(self._counts[layer][expert])} calibration tokens, "
            f"{_least(job, options)} are needed ({len(self.experts)} such experts); give more samples"
        )
        if options.algorithm in SMOOTHING:
            raise QuantizationError(f"{saw}: {options.algorithm} scales each expert on its own, so no rule can help")
        if job.recipe.rare_experts is RareExpertRule.ERROR:
            raise QuantizationError(f"{saw}, or set recipe.rare_experts to layer-max")

    def record(self, artifact: ArtifactWriter, module: LinearModule) -> None:
        """Name in the manifest what was done for ``module``, if it belongs to a rare expert."""
        if module.expert is None or (module.layer, module.expert) not in self.experts:
            return
        saw = f"{int(self._counts[module.layer][module.expert])} calibration tokens"
        if module.name in self.divisors:
            artifact.record_fallback(module.name, "layer-max", f"{saw}; its input scale is its layer's others' largest")
        if self._weight_rule is not None:
            artifact.record_fallback(module.name, self._weight_rule, f"{saw}; too few to learn its weights from")


def requantize_nearest(model: nn.Module, job: QuantizeJob, experts: frozenset[Expert]) -> None:
    """Restore the source weights of ``experts`` and round them to nearest, scales shared as everywhere."""
    modules: dict[Expert, list[LinearModule]] = defaultdict(list)
    for module in job.targets:
        if module.expert is not None and (module.layer, module.expert) in experts:
            modules[module.layer, module.expert].append(module)
    for siblings in modules.values():
        linears: list[Any] = [model.get_submodule(module.name) for module in siblings]
        for module, linear in zip(siblings, linears, strict=True):
            update_offload_parameter(linear, "weight", module.read(job.source).to(linear.weight.device))
            initialize_observer(linear, "weight")
        fuse_weight_observers(model.get_submodule(siblings[0].name.rpartition(".")[0]))
        observe(linears, "weight")
        update_qparams(linears, "weight")
        for linear in linears:
            del linear.weight_observer


def _least(job: QuantizeJob, options: LlmcompressorOptions) -> int:
    # The range of a single token's activations is zero, and SmoothQuant divides by its power.
    return max(2, job.recipe.min_expert_tokens) if options.algorithm == "smoothquant" else job.recipe.min_expert_tokens


def _layer_max(
    job: QuantizeJob, divisors: Mapping[str, torch.Tensor], rare: frozenset[Expert]
) -> dict[str, torch.Tensor]:
    """Divisors of the rare experts' modules: the smallest of their layer's other experts, by side.

    A divisor is 2688 / amax, so the smallest belongs to the largest activation. ``gate_proj`` and ``up_proj``
    read the same input and count as one side, ``down_proj`` as the other.
    """
    sides: dict[tuple[int, bool], list[torch.Tensor]] = defaultdict(list)
    wanted = []
    for module in job.targets:
        if module.expert is None or module.name not in divisors:
            continue
        if (module.layer, module.expert) in rare:
            wanted.append(module)
        else:
            sides[module.layer, module.projection == "down_proj"].append(divisors[module.name])
    filled: dict[str, torch.Tensor] = {}
    for module in wanted:
        measured = sides[module.layer, module.projection == "down_proj"]
        if not measured:
            raise QuantizationError(
                f"layer {module.layer}: every expert saw too few calibration tokens, layer-max has nothing "
                "to take; give more samples"
            )
        filled[str(module.name)] = torch.stack(measured).min()
    return filled
