"""Fused experts on the grouped path, watched: an experts implementation for Transformers' own interface.

``register()`` makes it known under :data:`IMPLEMENTATION`; a model loaded with ``experts_implementation`` set to that
name calls it. Tokens are sorted by expert, each projection is one grouped product over all experts, and the largest
input of each expert is taken by scatter. Nothing is un-fused.

The outputs are those of Transformers' eager experts to the last bit, as far as the products are: an expert's output
is weighed in float32, rounded, and added to the others' in the order of the experts' numbers, in the model's dtype.
(Transformers' own grouped path adds in float32, which moves the last bit of the next layer's inputs.)

Shape letters: T tokens, H hidden, I expert width, E experts, k experts a token, S = T x k rows sorted by expert.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol
from weakref import WeakKeyDictionary

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from torch import nn

IMPLEMENTATION: Final = "fourfold_observed"
#: Since Ampere torch has a grouped product on CUDA.
_GROUPED_CAPABILITY = (8, 0)


class ExpertsCall(NamedTuple):
    """What an experts module was given and made of it: ``hidden_states`` [T, H], its rows as gate and up read them
    [S, H], what down reads [S, I], and each row's expert and token (int64 [S]).
    """

    hidden_states: torch.Tensor
    gate_up_rows: torch.Tensor
    down_rows: torch.Tensor
    expert_S: torch.Tensor
    token_S: torch.Tensor


class ExpertsObserver(Protocol):
    """Who watches an experts module."""

    def see_experts(self, call: ExpertsCall) -> None:
        """One call of the module."""


_observers: WeakKeyDictionary[nn.Module, ExpertsObserver] = WeakKeyDictionary()


def register() -> None:
    """Make the implementation known to Transformers; a second call does nothing."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    ALL_EXPERTS_FUNCTIONS.register(IMPLEMENTATION, observed_experts)


@contextmanager
def watched(experts: nn.Module, observer: ExpertsObserver) -> Iterator[None]:
    """Show ``observer`` every call of an experts module inside the block."""
    _observers[experts] = observer
    try:
        yield
    finally:
        del _observers[experts]


def observed_experts(
    experts: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """The forward pass of an experts module: [T, H], int64 [T, k], [T, k] to [T, H]."""
    num_tokens, k = top_k_index.shape
    # Stable, so that an expert's tokens stand in their own order, as the eager loop takes them.
    expert_S, order = torch.sort(top_k_index.reshape(-1), stable=True)
    token_S = order // k
    ends_E = expert_S.bincount(minlength=experts.num_experts).cumsum(0)
    rows = hidden_states.index_select(0, token_S)
    gate, up = grouped_linear(rows, experts.gate_up_proj, ends_E).chunk(2, dim=-1)
    inner = experts.act_fn(gate) * up
    if (observer := _observers.get(experts)) is not None:
        observer.see_experts(ExpertsCall(hidden_states, rows, inner, expert_S, token_S))
    weighted = grouped_linear(inner, experts.down_proj, ends_E)
    # The product is float32, and rounded as it is stored: no float32 copy of the rows.
    torch.mul(weighted, top_k_weights.reshape(-1).index_select(0, order)[:, None], out=weighted)
    position = torch.empty_like(order)
    position[order] = torch.arange(len(order), device=order.device)
    in_expert_order = position.view(num_tokens, k).sort(dim=1).values.T.contiguous()  # rows are sorted by expert
    total = torch.zeros_like(hidden_states)
    for nth in in_expert_order:
        total += weighted.index_select(0, nth)
    return total


def grouped_linear(rows: torch.Tensor, weight_EOK: torch.Tensor, ends_E: torch.Tensor) -> torch.Tensor:
    """``rows`` [S, K] sorted by expert times each expert's weight [E, O, K], to [S, O]; ``ends_E`` are row numbers."""
    if _has_grouped_mm(rows, weight_EOK):
        return functional.grouped_mm(rows, weight_EOK.transpose(-2, -1), offs=ends_E.to(torch.int32))
    # On a CPU the loop is faster than torch's grouped product, and works in every dtype.
    output = rows.new_empty(rows.shape[0], weight_EOK.shape[1])
    start = 0
    for expert, end in enumerate(ends_E.tolist()):
        if end > start:
            output[start:end] = functional.linear(rows[start:end], weight_EOK[expert])
        start = end
    return output


def _has_grouped_mm(rows: torch.Tensor, weight: torch.Tensor) -> bool:
    aligned = all(size * rows.element_size() % 16 == 0 for size in weight.shape[1:])
    return (
        rows.device.type == "cuda"
        and rows.dtype is torch.bfloat16
        and aligned
        and torch.cuda.get_device_capability(rows.device) >= _GROUPED_CAPABILITY
    )
