"""What calibration sees of one layer: largest inputs, token counts, and where asked for, second moments.

Shape letters: T tokens, K in features, G = K/16 blocks, E experts, S routed rows sorted by expert.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from fourfold.engine.experts import ExpertsCall, largest_by_expert, row_amax, watched
from fourfold.engine.moments import MomentKind, Moments

if TYPE_CHECKING:
    from torch import nn

    from fourfold.models.gemma4 import LinearModule

GATE_UP, DOWN = "gate_up", "down"


@dataclass
class LayerObservations:
    """One layer's calibration, on the CPU once :meth:`collected`.

    Attributes:
        input_amax: float32 [] by scale group of the linears outside the experts.
        expert_amax: float32 [E] of ``gate_up`` and ``down`` inputs; 0 for an expert no token reached.
        tokens_E: int64 [E], padding not counted.
        moments: of the inputs, by scale group, ``gate_up`` and ``down``; empty unless an algorithm asks for them.
    """

    input_amax: dict[str, torch.Tensor] = field(default_factory=dict)
    expert_amax: dict[str, torch.Tensor] = field(default_factory=dict)
    tokens_E: torch.Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    moments: dict[str, Moments] = field(default_factory=dict)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Everything but the moments, by name, for a file."""
        named = {f"input.{group}": amax for group, amax in self.input_amax.items()}
        return named | {f"expert.{kind}": amax for kind, amax in self.expert_amax.items()} | {"tokens": self.tokens_E}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor]) -> LayerObservations:
        """What :meth:`tensors` gave."""
        parts: dict[str, dict[str, torch.Tensor]] = {"input": {}, "expert": {}}
        for name, tensor in tensors.items():
            kind, _, rest = name.partition(".")
            if kind in parts:
                parts[kind][rest] = tensor
        return cls(input_amax=parts["input"], expert_amax=parts["expert"], tokens_E=tensors["tokens"])


def merged(parts: Sequence[LayerObservations]) -> LayerObservations:
    """One layer's, seen on several shares of the tokens; second moments cannot be put together so."""
    first, *others = parts
    result = LayerObservations.from_tensors(first.tensors())
    for other in others:
        for mine, theirs in ((result.input_amax, other.input_amax), (result.expert_amax, other.expert_amax)):
            mine.update({name: torch.maximum(mine[name], theirs[name]) for name in mine})
        result.tokens_E = result.tokens_E + other.tokens_E
    return replace(result, moments=first.moments if not others else {})


class LayerObserver:
    """Watches one decoder layer while :meth:`watching`; what it keeps stays where it is in memory.

    Every position is seen, padding too, as toolchains' observers see it; only counts leave padding out.
    ``keep_T`` (bool [T], None for all) says which positions of the coming batch are real.
    """

    def __init__(
        self,
        linears: Mapping[str, LinearModule],
        num_experts: int,
        device: torch.device,
        moments: MomentKind | None = None,
    ) -> None:
        """``linears`` are the layer's, outside the experts, by name inside the layer."""
        self._first: dict[str, str] = {}
        for name, linear in linears.items():
            # Linears of one scale group read one input: the first to be called is watched for all.
            self._first.setdefault(linear.scale_group, name)
        self._device, self._num_experts, self._kind = device, num_experts, moments
        self.keep_T: torch.Tensor | None = None
        self._dense = {group: torch.zeros((), device=device) for group in self._first}
        self._experts = {kind: torch.zeros(num_experts, device=device) for kind in (GATE_UP, DOWN)}
        self._tokens_E = torch.zeros(num_experts, dtype=torch.int64, device=device)
        self._moments: dict[str, Moments] = {}

    @contextmanager
    def watching(self, layer: nn.Module) -> Iterator[None]:
        """Watch every call of ``layer`` inside the block."""
        with ExitStack() as stack:
            for group, name in self._first.items():
                handle = layer.get_submodule(name).register_forward_pre_hook(self._hook(group))
                stack.callback(handle.remove)
            stack.enter_context(watched(layer.get_submodule("experts"), self))
            yield

    def _hook(self, group: str) -> Any:
        def see(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            x = inputs[0].detach()
            low, high = torch.aminmax(x)
            torch.maximum(self._dense[group], torch.maximum(-low, high).float(), out=self._dense[group])
            if self._kind is not None:
                rows = x.reshape(-1, x.shape[-1])
                self._of(group, rows, 1).add(rows, torch.tensor([len(rows)]))

        return see

    def see_experts(self, call: ExpertsCall) -> None:
        """See :class:`fourfold.engine.experts.ExpertsObserver`."""
        expert_S = call.expert_S
        # A token's largest value is its rows' in every expert: taken before it is repeated.
        token_amax_S = row_amax(call.hidden_states).index_select(0, call.token_S)
        for kind, amax_S in ((GATE_UP, token_amax_S), (DOWN, call.down_amax_S)):
            torch.maximum(self._experts[kind], largest_by_expert(amax_S, call.ends_E), out=self._experts[kind])
        if self._kind is not None:
            rows_E = call.ends_E.diff(prepend=call.ends_E.new_zeros(1))
            for kind, rows in ((GATE_UP, call.gate_up_rows), (DOWN, call.down_rows)):
                self._of(kind, rows, self._num_experts).add(rows, rows_E)
        if self.keep_T is None:
            self._tokens_E += call.ends_E.diff(prepend=call.ends_E.new_zeros(1))
        else:
            self._tokens_E += expert_S[self.keep_T[call.token_S]].bincount(minlength=self._num_experts)

    def _of(self, name: str, rows: torch.Tensor, count: int) -> Moments:
        if name not in self._moments:
            assert self._kind is not None  # the callers' condition
            self._moments[name] = Moments(self._kind, count, rows.shape[-1], self._device)
        return self._moments[name]

    def collected(self) -> LayerObservations:
        """What was seen so far; amaxes and counts on the CPU, moments where they are."""
        return LayerObservations(
            input_amax={group: amax.cpu() for group, amax in self._dense.items()},
            expert_amax={kind: amax.cpu() for kind, amax in self._experts.items()},
            tokens_E=self._tokens_E.cpu(),
            moments=self._moments,
        )
