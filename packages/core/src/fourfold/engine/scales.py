"""Input scales: from what calibration saw, or from another folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from fourfold.checkpoint.canonical import CanonicalFolder
from fourfold.checkpoint.layouts import CANONICAL
from fourfold.config import RareExpertRule, Recipe, Scheme
from fourfold.engine.observations import DOWN, GATE_UP, LayerObservations
from fourfold.errors import ConfigError, QuantizationError
from fourfold.manifest import Fallback
from fourfold.models.gemma4 import LinearModule
from fourfold.nvfp4 import BlockScalePolicy, global_scale_from_amax

if TYPE_CHECKING:
    from fourfold.models.gemma4 import ModuleName

#: What an algorithm that weighs inputs does to the weights of an expert without any.
_WEIGHT_FALLBACKS = {
    "local-hessian": ("plain-mse", "no input seen, so its block scales minimise the plain squared error"),
    "gptq": ("round-to-nearest", "no input seen, so its weights are rounded without error feedback"),
}


def input_scales(
    targets: Iterable[LinearModule], seen: LayerObservations, recipe: Recipe, *, per_layer: bool
) -> tuple[dict[ModuleName, torch.Tensor], list[Fallback]]:
    """Input global scales, float32 [], of one layer's targets, and what was derived instead of measured.

    An expert below ``recipe.min_expert_tokens`` gets the largest amax of its layer's other experts, or ends the run, as
    the recipe says. ``per_layer`` gives all experts of a layer the largest. Targets in W4A16 have no scales to give,
    and only the rule ``error`` applies to them.
    """
    targets = tuple(targets)
    tokens = seen.tokens_E.tolist()
    rare = frozenset(
        expert
        for expert, count in enumerate(tokens)
        if count < recipe.min_expert_tokens or not bool(seen.expert_amax[GATE_UP][expert] > 0)
    )
    _apply_error_rule(targets, tokens, rare, recipe)
    scales: dict[ModuleName, torch.Tensor] = {}
    fallbacks = []
    for module in rounding_inputs(targets, recipe):
        amax = seen.input_amax[module.scale_group] if module.expert is None else None
        if module.expert is not None:
            amax_E = seen.expert_amax[DOWN if module.projection == "down_proj" else GATE_UP]
            amax = amax_E[module.expert]
            if module.expert in rare or per_layer:
                amax = _largest(module, amax_E, rare, recipe)
            if module.expert in rare:
                detail = f"{tokens[module.expert]} calibration tokens"
                rule = str(RareExpertRule.LAYER_MAX)
                fallbacks.append(Fallback(module=str(module.name), rule=rule, detail=detail))
        try:
            assert amax is not None  # one of the two above
            scales[module.name] = global_scale_from_amax(amax, BlockScalePolicy.MODELOPT)
        except ValueError as error:
            raise QuantizationError(f"{module.name}: its calibration inputs: {error}") from None
    return scales, fallbacks


def rounding_inputs(targets: Iterable[LinearModule], recipe: Recipe) -> tuple[LinearModule, ...]:
    """Those of ``targets`` whose activations are quantized too."""
    return tuple(module for module in targets if recipe.scheme_of(module.name) is Scheme.W4A4)


def _apply_error_rule(
    targets: tuple[LinearModule, ...], tokens: list[int], rare: frozenset[int], recipe: Recipe
) -> None:
    if recipe.rare_experts is not RareExpertRule.ERROR:
        return
    hit = [module for module in targets if module.expert in rare]
    if hit:
        first, number = hit[0], len({module.expert for module in hit})
        raise QuantizationError(
            f"layer {first.layer}, expert {first.expert}: {tokens[first.expert or 0]} calibration tokens, "
            f"{recipe.min_expert_tokens} wanted ({number} such experts in the layer); calibrate on more samples, or "
            "set the rule for rare experts to layer-max"
        )


def _largest(module: LinearModule, amax_E: torch.Tensor, rare: frozenset[int], recipe: Recipe) -> torch.Tensor:
    usual = [expert for expert in range(len(amax_E)) if expert not in rare]
    if not usual:
        raise QuantizationError(
            f"layer {module.layer}: no expert's {module.projection} saw {recipe.min_expert_tokens} calibration tokens; "
            "calibrate on more samples"
        )
    return amax_E[usual].amax()


def weight_fallbacks(targets: Iterable[LinearModule], seen: LayerObservations, algorithm: str) -> list[Fallback]:
    """Weights for which ``algorithm`` had wanted inputs and got none."""
    if algorithm not in _WEIGHT_FALLBACKS:
        return []
    rule, detail = _WEIGHT_FALLBACKS[algorithm]
    return [
        Fallback(module=str(module.name), rule=rule, detail=detail)
        for module in targets
        if module.expert is not None and not bool(seen.expert_amax[GATE_UP][module.expert] > 0)
    ]


def read_input_scales(folder: Path, targets: Iterable[LinearModule]) -> dict[ModuleName, torch.Tensor]:
    """Input global scales, float32 [], of another artifact or checkpoint in any layout.

    Raises :class:`ConfigError` naming the first target it lacks.
    """
    source = CanonicalFolder(folder)
    scales: dict[ModuleName, torch.Tensor] = {}
    missing = []
    for module in targets:
        name = f"{module.name}.{CANONICAL.input_global_scale}"
        if name in source:
            scales[module.name] = source.read(name).clone()
        else:
            missing.append(module.name)
    source.close()
    if missing:
        raise ConfigError(
            f"quantizer.input_scales: {folder} has no input scale of {missing[0]} ({len(missing)} of the targets "
            "missing); exclude them, or name a W4A4 checkpoint that quantizes them"
        )
    return scales
