"""Watches a calibration from inside llm-compressor's life cycle: who was routed where, and who was never
observed.

llm-compressor allocates scales with ``torch.empty`` and leaves those of a module it never observed as they
are, so that an expert without tokens ends with whatever the memory held. The watch marks every scale with NaN
before the first token, which turns "never observed" into something that can be seen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from compressed_tensors.offload import update_offload_parameter
from llmcompressor.core import Event, State
from llmcompressor.modifiers import Modifier
from pydantic import PrivateAttr

#: Scales that llm-compressor fills while it calibrates.
MARKED = ("weight_global_scale", "input_global_scale", "k_scale", "v_scale")


class CalibrationWatch(Modifier):
    """First in a recipe, so that it stops counting a layer before another modifier replays it.

    Attributes:
        experts: names of the modules called as ``experts(hidden [T, H], index [T, k], weights [T, k])``.
        num_experts: E.
    """

    experts: list[str]
    num_experts: int

    _masks: Sequence[torch.Tensor] = PrivateAttr(default=())
    _layers: list[tuple[torch.nn.Module, Callable[[], None]]] = PrivateAttr(default_factory=list)
    _counts: dict[str, torch.Tensor] = PrivateAttr(default_factory=dict)
    _handles: dict[torch.nn.Module, Any] = PrivateAttr(default_factory=dict)

    def expect(
        self, masks: Sequence[torch.Tensor], layers: list[torch.nn.Module], layer_done: Callable[[], None]
    ) -> None:
        """Say what will be run.

        ``masks`` are the batches' attention masks [B, T], in order; what they mark as padding is not counted.
        ``layer_done`` is called after each batch through each of ``layers``, replays not counted.
        """
        self._masks = masks
        self._layers = [(layer, layer_done) for layer in layers]

    def counts(self, experts: str) -> torch.Tensor:
        """Tokens routed to each expert of a layer, int64 [E]."""
        return self._counts[experts]

    def on_initialize(self, state: State, **kwargs: Any) -> bool:
        """Nothing to prepare: quantization parameters do not exist yet."""
        return True

    def on_calibration_start(self, state: State, event: Event, **kwargs: Any) -> None:
        """Mark the scales, start counting."""
        for module in state.model.modules():
            if hasattr(module, "quantization_scheme"):
                for name in MARKED:
                    if (scale := getattr(module, name, None)) is not None:
                        update_offload_parameter(module, name, torch.full_like(scale, float("nan")))
        for layer, done in self._layers:
            self._handles[layer] = self.register_hook(layer, _calling(done), "forward")
        for name in self.experts:
            self._counts[name] = torch.zeros(self.num_experts, dtype=torch.int64)
            module = state.model.get_submodule(name)
            self._handles[module] = self.register_hook(module, self._counting(name), "forward_pre")

    def _counting(self, name: str) -> Callable[..., None]:
        masks = iter(self._masks)  # each batch passes a layer once, in order, until the layer is finished

        def count(_module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            routed = args[1].to(device="cpu", dtype=torch.int64)
            real = routed[next(masks).reshape(-1).bool()]
            self._counts[name] += torch.bincount(real.reshape(-1), minlength=self.num_experts)

        return count

    def on_sequential_epoch_end(
        self, state: State, event: Event, modules: list[torch.nn.Module], **kwargs: Any
    ) -> None:
        """Stop counting in ``modules``: what runs through them from here on is a replay."""
        finished = {handle for module in modules if (handle := self._handles.pop(module, None)) is not None}
        if finished:
            self.remove_hooks(finished)

    def on_calibration_end(self, state: State, event: Event, **kwargs: Any) -> None:
        """Stop counting."""
        self.remove_hooks()


def _calling(function: Callable[[], None]) -> Callable[..., None]:
    """A forward hook that calls ``function`` without arguments and leaves the output alone."""

    def hook(*_: Any) -> None:
        function()

    return hook
