"""What an expert gets that too few calibration tokens reached.

ModelOpt's own export gives an input quantizer that saw nothing
the largest amax of its layer's experts, and 0.5 where there is none, with a warning at most; here the first is the
rule ``layer-max``, applied below a stated count and written to the manifest, and the second is an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from fourfold.config import RareExpertRule, Recipe
from fourfold.errors import QuantizationError

from fourfold_modelopt.linears import QuantizedLinear
from fourfold_modelopt.options import PER_EXPERT_INPUTS

if TYPE_CHECKING:
    from fourfold.artifact import ArtifactWriter

#: What an algorithm that weighs an expert's inputs does to weights when there are none.
_WEIGHT_FALLBACKS = {
    "local-hessian": ("plain-mse", "no input seen, so its block scales minimise the plain squared error"),
    "gptq": ("round-to-nearest", "no input seen, so its weights are rounded without error feedback"),
    "awq-clip": ("max", "no input seen, so its global scale comes from the weights' amax, unclipped"),
}


def apply_rare_rule(
    linears: Iterable[QuantizedLinear],
    counts: Mapping[int, torch.Tensor],
    recipe: Recipe,
    weight_algorithm: str,
    artifact: ArtifactWriter,
) -> None:
    """Give rare experts their layer's largest input amax, by name, or stop, as the recipe says."""
    experts = [linear for linear in linears if linear.module.expert is not None]
    rare = [linear for linear in experts if _tokens(linear, counts) < recipe.min_expert_tokens]
    if rare and recipe.rare_experts is RareExpertRule.ERROR:
        first, number = rare[0].module, len({(linear.module.layer, linear.module.expert) for linear in rare})
        raise QuantizationError(
            f"layer {first.layer}, expert {first.expert}: {_tokens(rare[0], counts)} calibration tokens, "
            f"{recipe.min_expert_tokens} wanted ({number} such experts); calibrate on more samples, or set the rule "
            "for rare experts to layer-max"
        )
    largest = _largest_amax(linear for linear in experts if linear not in rare)
    for linear in rare:
        tokens = _tokens(linear, counts)
        if linear.input_quantizer.is_enabled:
            amax = largest.get((linear.module.layer, linear.module.projection))
            if amax is None:
                raise QuantizationError(
                    f"layer {linear.module.layer}: no expert's {linear.module.projection} saw "
                    f"{recipe.min_expert_tokens} calibration tokens; calibrate on more samples"
                )
            if not linear.fused:
                linear.input_quantizer.amax = amax.to(linear.covered_weight.device)
            artifact.record_fallback(
                linear.module.name, str(RareExpertRule.LAYER_MAX), f"{tokens} calibration tokens"
            )
        if tokens == 0 and weight_algorithm in PER_EXPERT_INPUTS:
            artifact.record_fallback(linear.module.name, *_WEIGHT_FALLBACKS[weight_algorithm])


def _tokens(linear: QuantizedLinear, counts: Mapping[int, torch.Tensor]) -> int:
    return int(counts[linear.module.layer][linear.module.expert or 0])


def _largest_amax(linears: Iterable[QuantizedLinear]) -> dict[tuple[int, str], torch.Tensor]:
    """Largest input amax of each layer and projection, float32, on the CPU."""
    largest: dict[tuple[int, str], torch.Tensor] = {}
    for linear in linears:
        if linear.input_quantizer.is_enabled and linear.input_quantizer.amax is not None:
            key = (linear.module.layer, linear.module.projection)
            amax = linear.input_quantizer.amax.float().cpu().reshape(())
            largest[key] = torch.maximum(largest[key], amax) if key in largest else amax
    return largest
