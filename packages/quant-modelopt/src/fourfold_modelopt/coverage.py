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
    artifact: ArtifactWriter,
) -> None:
    """Give rare experts their layer's largest input amax, by name, or stop, as the recipe says."""
    experts = [linear for linear in linears if linear.module.expert is not None]
    rare = [linear for linear in experts if _tokens(linear, counts) < recipe.min_expert_tokens or _unseen(linear)]
    if rare and recipe.rare_experts is RareExpertRule.ERROR:
        first, number = rare[0].module, len({(linear.module.layer, linear.module.expert) for linear in rare})
        raise QuantizationError(
            f"layer {first.layer}, expert {first.expert}: {_tokens(rare[0], counts)} calibration tokens, "
            f"{recipe.min_expert_tokens} wanted ({number} such experts); calibrate on more samples, or set the rule "
            "for rare experts to layer-max"
        )
    rare_ids = {id(linear) for linear in rare}
    largest = _largest_amax(linear for linear in experts if id(linear) not in rare_ids)
    for linear in rare:
        if not linear.input_quantizer.is_enabled:
            continue
        amax = largest.get((linear.module.layer, linear.module.projection))
        if amax is None:
            raise QuantizationError(
                f"layer {linear.module.layer}: no expert's {linear.module.projection} saw "
                f"{recipe.min_expert_tokens} calibration tokens; calibrate on more samples"
            )
        if not linear.fused:
            linear.input_quantizer.amax = amax.to(linear.covered_weight.device)
        detail = f"{_tokens(linear, counts)} calibration tokens"
        artifact.record_fallback(linear.module.name, str(RareExpertRule.LAYER_MAX), detail)


def record_weights_without_inputs(linears: Iterable[QuantizedLinear], algorithm: str, artifact: ArtifactWriter) -> None:
    """Name the weights for which ``algorithm`` had wanted inputs and got none."""
    for linear in linears:
        artifact.record_fallback(linear.module.name, *_WEIGHT_FALLBACKS[algorithm])


def _unseen(linear: QuantizedLinear) -> bool:
    """Counted in the unquantized model, an expert may still see nothing behind quantized layers."""
    return linear.input_quantizer.is_enabled and linear.input_quantizer.amax is None


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
