"""Where a target stands in the model that ModelOpt converted: its weight and its two quantizers.

Behind the reference unfuser every target is a quantized ``nn.Linear``. Behind ModelOpt's own wrapper an expert's gate
and up share one weight quantizer over ``gate_up_proj[e]`` [2I, K], and all experts of a layer share the input
quantizers. :class:`QuantizedLinear` hides the difference.

Shape letters: E experts, I expert width, O out features, K in features.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from modelopt.torch.quantization.nn import TensorQuantizer
from torch import nn

from fourfold.config import Recipe, Scheme
from fourfold.errors import QuantizationError
from fourfold.models.gemma4 import LinearModule


@dataclass(frozen=True, eq=False)
class QuantizedLinear:
    """One target. ``rows`` are its rows of the tensor that its weight quantizer covers."""

    module: LinearModule
    holder: nn.Module
    weight_quantizer: TensorQuantizer
    input_quantizer: TensorQuantizer
    rows: slice
    fused: bool

    @property
    def covered_weight(self) -> torch.Tensor:
        """The tensor [O', K] that the weight quantizer covers: the target's, or gate and up together."""
        if not self.fused:
            return self.holder.weight.detach()  # type: ignore[operator]
        tensor = self.holder.down_proj if self.module.projection == "down_proj" else self.holder.gate_up_proj
        return tensor[self.module.expert].detach()  # type: ignore[index]


def find_linears(model: nn.Module, targets: Iterable[LinearModule]) -> tuple[QuantizedLinear, ...]:
    """Every target in ``model``, in order. Raises :class:`QuantizationError` for one that is not there."""
    modules = dict(model.named_modules())
    return tuple(_find(modules, target) for target in targets)


def _find(modules: Mapping[str, nn.Module], target: LinearModule) -> QuantizedLinear:
    linear = modules.get(target.name)
    if linear is not None:
        if not isinstance(getattr(linear, "weight_quantizer", None), TensorQuantizer):
            raise QuantizationError(f"{target.name}: ModelOpt put no quantizer on this {type(linear).__name__}")
        return QuantizedLinear(
            target, linear, linear.weight_quantizer, linear.input_quantizer, slice(None), fused=False
        )
    experts = modules.get(target.name.rsplit(".", 2)[0])
    if target.expert is None or not hasattr(experts, "gate_up_proj_weight_quantizers"):
        raise QuantizationError(f"{target.name}: not in the loaded model, nor covered by fused experts")
    return _find_fused(experts, target)


def _find_fused(experts: Any, target: LinearModule) -> QuantizedLinear:
    if target.projection == "down_proj":
        quantizers, inputs, rows = (
            experts.down_proj_weight_quantizers,
            experts.down_proj_input_quantizer,
            slice(None),
        )
    else:
        quantizers, inputs = experts.gate_up_proj_weight_quantizers, experts.gate_up_proj_input_quantizer
        width = target.shape[0]
        rows = slice(0, width) if target.projection == "gate_proj" else slice(width, 2 * width)
    return QuantizedLinear(target, experts, quantizers[target.expert], inputs, rows, fused=True)


def enable(
    linears: Iterable[QuantizedLinear], weight: Mapping[str, Any], inputs: Mapping[str, Any], recipe: Recipe
) -> None:
    """Switch the targets' quantizers on with the given attributes, those of inputs where the recipe says W4A4."""
    for linear in linears:
        linear.weight_quantizer.set_from_attribute_config({**weight, "enable": True})
        if recipe.scheme_of(linear.module.name) is Scheme.W4A4:
            linear.input_quantizer.set_from_attribute_config({**inputs, "enable": True})
