"""One decoder layer whose linears can be watched, measured, and put into NVFP4 for a while, by forward hooks.

Shape letters: O out features, K in features, N rows of input (tokens, or those routed to an expert).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from fourfold.config import Scheme
from fourfold.models.gemma4 import LinearModule, ModuleKind
from fourfold.nvfp4 import fake_quantize_activations
from fourfold.nvfp4.constants import GLOBAL_SCALE_DIVISOR
from fourfold.sensitivity.weights import Decoded


class LinearState:
    """A linear, its decoded weight, its input scale once known, and the squared sums of its errors (float64 [])."""

    def __init__(self, decoded: Decoded, linear: nn.Linear) -> None:
        self.module: LinearModule = decoded.module
        self.linear = linear
        self.original = linear.weight
        difference = decoded.weight.to(linear.weight.device) - linear.weight.float()
        self.weight_error = float(difference.double().square().sum())
        self.weight_norm = float(linear.weight.double().square().sum())
        self.decoded = nn.Parameter(decoded.weight.to(linear.weight), requires_grad=False)
        self.input_scale = decoded.input_global_scale
        self.weights_only = decoded.weights_only
        self.amax: torch.Tensor | None = None
        self.tokens = 0
        zero = torch.zeros((), dtype=torch.float64, device=linear.weight.device)
        self.norm, self.error_w4a16, self.error_w4a4 = zero, zero.clone(), zero.clone()

    def observe(self, _module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        """Forward pre-hook: take the largest absolute input."""
        if args[0].numel():
            amax = args[0].detach().abs().amax().float()
            self.amax = amax if self.amax is None else torch.maximum(self.amax, amax)

    def measure(self, _module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        """Forward hook: compare the outputs [N, O] that NVFP4 would give with the one there is."""
        x = args[0].detach()
        self.tokens += x[..., 0].numel()
        if not x.numel():
            return
        self.norm += _square_sum(output)
        self.error_w4a16 += _square_sum(functional.linear(x, self.decoded) - output)
        if self.input_scale is not None:
            rounded = fake_quantize_activations(x, self.input_scale)
            self.error_w4a4 += _square_sum(functional.linear(rounded, self.decoded) - output)

    def round_input(self, _module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        """Forward pre-hook: activations as the hardware sees them."""
        if self.input_scale is None or not args[0].numel():
            return None
        return (fake_quantize_activations(args[0], self.input_scale), *args[1:])


class QuantizableLayer:
    """A decoder layer and the states of its quantizable linears.

    ``prefix`` is what stands before the linears' names inside the layer, ``model.language_model.layers.3.``.
    """

    def __init__(self, layer: nn.Module, prefix: str, decoded: Iterator[Decoded]) -> None:
        self.module = layer
        self.states: list[LinearState] = []
        for item in decoded:
            linear = layer.get_submodule(item.module.name.removeprefix(prefix))
            if not isinstance(linear, nn.Linear):
                raise TypeError(f"{item.module.name}: {type(linear).__name__} is no linear")
            self.states.append(LinearState(item, linear))
        self.states.sort(key=lambda state: state.module.name)

    @property
    def kinds(self) -> tuple[ModuleKind, ...]:
        """The roles that have linears here."""
        return tuple(kind for kind in ModuleKind if any(state.module.kind is kind for state in self.states))

    @property
    def needs_scales(self) -> bool:
        """Whether an input scale has to come from observed inputs."""
        return any(state.input_scale is None for state in self.states)

    @contextmanager
    def observing(self) -> Iterator[None]:
        """Watch inputs; on leaving, every linear without an input scale gets one from its amax.

        An expert no token reached gets the largest amax of its layer's other experts' same projection, the rule
        ``layer-max``.
        """
        states = [state for state in self.states if state.input_scale is None]
        with _hooked(state.linear.register_forward_pre_hook(state.observe) for state in states):
            yield
        for state in states:
            role = (state.module.kind, state.module.projection)
            same = [other.amax for other in states if (other.module.kind, other.module.projection) == role]
            seen = [amax for amax in same if amax is not None and bool(amax > 0)]
            amax = state.amax if state.amax is not None and bool(state.amax > 0) else None
            if amax is None and seen:
                amax = torch.stack(seen).amax()
            if amax is not None:
                state.input_scale = amax / GLOBAL_SCALE_DIVISOR

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Add every call's errors to the sums; results stay the unquantized layer's."""
        with _hooked(state.linear.register_forward_hook(state.measure) for state in self.states):
            yield

    @contextmanager
    def quantized(self, chosen: Callable[[LinearModule], bool], scheme: Scheme) -> Iterator[None]:
        """The chosen linears in NVFP4: decoded weights, and under W4A4 rounded inputs."""
        states = [state for state in self.states if chosen(state.module)]
        for state in states:
            state.linear.weight = state.decoded
        inputs = [state for state in states if scheme is Scheme.W4A4 and not state.weights_only]
        try:
            with _hooked(state.linear.register_forward_pre_hook(state.round_input) for state in inputs):
                yield
        finally:
            for state in states:
                state.linear.weight = state.original


@contextmanager
def _hooked(handles: Iterator[Any]) -> Iterator[None]:
    held = list(handles)
    try:
        yield
    finally:
        for handle in held:
            handle.remove()


def _square_sum(values: torch.Tensor) -> torch.Tensor:
    return values.double().square().sum()
