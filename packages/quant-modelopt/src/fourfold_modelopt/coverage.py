"""Which experts the calibration tokens reached, and what an expert gets that they did not.

Tokens are counted where the real router sends them. ModelOpt's own export gives an input quantizer that saw nothing
the largest amax of its layer's experts, and 0.5 where there is none, with a warning at most; here the first is the
rule ``layer-max``, applied below a stated count and written to the manifest, and the second is an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from fourfold.config import RareExpertRule, Recipe
from fourfold.errors import QuantizationError
from torch import nn

from fourfold_modelopt.linears import QuantizedLinear
from fourfold_modelopt.options import PER_EXPERT_INPUTS

if TYPE_CHECKING:
    from fourfold.artifact import ArtifactWriter
    from fourfold.models.gemma4 import Gemma4Moe

#: Position of the chosen experts [T, k] in what ``Gemma4TextRouter`` returns.
_TOP_K_INDEX = 2
#: What an algorithm that weighs an expert's inputs does to weights when there are none.
_WEIGHT_FALLBACKS = {
    "local-hessian": ("plain-mse", "no input seen, so its block scales minimise the plain squared error"),
    "gptq": ("round-to-nearest", "no input seen, so its weights are rounded without error feedback"),
    "awq-clip": ("max", "no input seen, so its global scale comes from the weights' amax, unclipped"),
}


class RouterTally:
    """Tokens sent to each expert, by layer. A layer counts its first full pass and no later one."""

    def __init__(self, gemma: Gemma4Moe, num_tokens: int) -> None:
        self._gemma, self._num_tokens = gemma, num_tokens
        self._seen = dict.fromkeys(range(gemma.num_layers), 0)
        self.counts = {
            layer: torch.zeros(gemma.num_experts, dtype=torch.int64) for layer in range(gemma.num_layers)
        }

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Count while the block runs. Raises :class:`QuantizationError` for a layer that saw fewer tokens at the end."""
        handles = []
        for layer in self.counts:
            router = model.get_submodule(self._gemma.experts_module(layer).rpartition(".")[0] + ".router")
            handles.append(router.register_forward_hook(self._hook(layer)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        for layer, seen in self._seen.items():
            if seen < self._num_tokens:
                raise QuantizationError(
                    f"layer {layer}: its router saw {seen} of {self._num_tokens} calibration tokens"
                )

    def _hook(self, layer: int) -> Any:
        def count(_module: nn.Module, _inputs: object, output: Sequence[torch.Tensor]) -> None:
            if self._seen[layer] >= self._num_tokens:
                return
            chosen = output[_TOP_K_INDEX].detach().cpu()
            self._seen[layer] += chosen.shape[0]
            self.counts[layer] += torch.bincount(chosen.reshape(-1), minlength=self._gemma.num_experts)

        return count


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
