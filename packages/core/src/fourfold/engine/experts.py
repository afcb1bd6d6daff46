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

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol
from weakref import WeakKeyDictionary

import torch
from torch.nn import functional

from fourfold.engine.compiled import compile_function

if TYPE_CHECKING:
    from torch import nn

IMPLEMENTATION: Final = "fourfold_observed"
#: The same with its elementwise parts compiled: faster on a GPU, last bits may differ.
FUSED: Final = "fourfold_observed_fused"
#: Since Ampere torch has a grouped product on CUDA.
_GROUPED_CAPABILITY = (8, 0)


class ExpertsCall(NamedTuple):
    """What an experts module was given and made of it: ``hidden_states`` [T, H], its rows as gate and up read them
    [S, H], what down reads [S, I] and each such row's largest absolute value [S], each row's expert and token
    (int64 [S]), and where each expert's rows end (int64 [E]).
    """

    hidden_states: torch.Tensor
    gate_up_rows: torch.Tensor
    down_rows: torch.Tensor
    down_amax_S: torch.Tensor
    expert_S: torch.Tensor
    token_S: torch.Tensor
    ends_E: torch.Tensor


class ExpertsObserver(Protocol):
    """Who watches an experts module."""

    def see_experts(self, call: ExpertsCall) -> None:
        """One call of the module."""


_observers: WeakKeyDictionary[nn.Module, ExpertsObserver] = WeakKeyDictionary()


@cache
def register() -> None:
    """Make the implementation known to Transformers; a second call does nothing."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    ALL_EXPERTS_FUNCTIONS.register(IMPLEMENTATION, partial(observed_experts, gated=_gated, summed=_summed))
    gated, summed = compile_function(_gated), compile_function(_summed_in_one)
    ALL_EXPERTS_FUNCTIONS.register(FUSED, partial(observed_experts, gated=gated, summed=summed))


@contextmanager
def watched(experts: nn.Module, observer: ExpertsObserver) -> Iterator[None]:
    """Show ``observer`` every call of an experts module inside the block."""
    _observers[experts] = observer
    try:
        yield
    finally:
        del _observers[experts]


def observed_experts(
    experts: Any,
    hidden_states: torch.Tensor,
    top_k_index: torch.Tensor,
    top_k_weights: torch.Tensor,
    *,
    gated: Callable[..., tuple[torch.Tensor, torch.Tensor]],
    summed: Callable[..., torch.Tensor],
) -> torch.Tensor:
    """The forward pass of an experts module: [T, H], int64 [T, k], [T, k] to [T, H]."""
    num_tokens, k = top_k_index.shape
    # Stable, so that an expert's tokens stand in their own order, as the eager loop takes them.
    expert_S, order = torch.sort(top_k_index.reshape(-1), stable=True)
    token_S = order // k
    # Counted by search, which unlike a histogram lets the GPU run on.
    ends_E = torch.searchsorted(expert_S, torch.arange(experts.num_experts, device=expert_S.device), right=True)
    rows = hidden_states.index_select(0, token_S)
    inner, inner_amax_S = gated(grouped_linear(rows, experts.gate_up_proj, ends_E), experts.act_fn)
    if (observer := _observers.get(experts)) is not None:
        observer.see_experts(ExpertsCall(hidden_states, rows, inner, inner_amax_S, expert_S, token_S, ends_E))
    output = grouped_linear(inner, experts.down_proj, ends_E)
    position = torch.empty_like(order)
    position[order] = torch.arange(len(order), device=order.device)
    in_expert_order = position.view(num_tokens, k).sort(dim=1).values.T.contiguous()  # rows are sorted by expert
    return summed(output, top_k_weights.reshape(-1).index_select(0, order), in_expert_order)


def _gated(gate_up: torch.Tensor, act_fn: Callable[[torch.Tensor], torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """[S, 2I] to [S, I], and its rows' largest absolute values [S]: compiled, the two are one pass."""
    gate, up = gate_up.chunk(2, dim=-1)
    inner = act_fn(gate) * up
    return inner, row_amax(inner)


def row_amax(rows: torch.Tensor) -> torch.Tensor:
    """Largest absolute value of each row [S, K], in the rows' dtype [S]; no copy of the rows is made for it."""
    low, high = torch.aminmax(rows, dim=-1)
    return torch.maximum(high, -low)


def largest_by_expert(values_S: torch.Tensor, ends_E: torch.Tensor) -> torch.Tensor:
    """Each expert's largest of non-negative values that are sorted by expert, float32 [E]; 0 for one without any."""
    offsets = torch.cat([ends_E.new_zeros(1), ends_E])
    return torch.segment_reduce(values_S.float(), "max", offsets=offsets, initial=0)


def _summed(output: torch.Tensor, weight_S: torch.Tensor, rows_kT: torch.Tensor) -> torch.Tensor:
    """Rows [S, H] weighed and added up by token, [T, H]; ``rows_kT`` are each token's rows in the experts' order."""
    # The product is float32, and rounded as it is stored: no float32 copy of the rows.
    torch.mul(output, weight_S[:, None], out=output)
    total = output.new_zeros(rows_kT.shape[1], output.shape[1])
    for rows in rows_kT:
        total += output.index_select(0, rows)
    return total


def _summed_in_one(output: torch.Tensor, weight_S: torch.Tensor, rows_kT: torch.Tensor) -> torch.Tensor:
    """:func:`_summed` as one expression, for a compiler to make one pass of."""
    total = output.new_zeros(rows_kT.shape[1], output.shape[1])
    for rows in rows_kT.unbind():
        total = total + (output[rows] * weight_S[rows][:, None]).to(output.dtype)
    return total


def grouped_linear(rows: torch.Tensor, weight_EOK: torch.Tensor, ends_E: torch.Tensor) -> torch.Tensor:
    """``rows`` [S, K] sorted by expert times each expert's weight [E, O, K], to [S, O]; ``ends_E`` are row numbers."""
    if has_grouped_product(weight_EOK):
        return functional.grouped_mm(rows, weight_EOK.transpose(-2, -1), offs=ends_E.to(torch.int32))
    # On a CPU the loop is faster than torch's grouped product, and works in every dtype.
    output = rows.new_empty(rows.shape[0], weight_EOK.shape[1])
    start = 0
    for expert, end in enumerate(ends_E.tolist()):
        if end > start:
            output[start:end] = functional.linear(rows[start:end], weight_EOK[expert])
        start = end
    return output


def has_grouped_product(weight_EOK: torch.Tensor) -> bool:
    """Whether torch multiplies by all of these at once; the loop over experts, else, waits for row counts."""
    aligned = all(size * weight_EOK.element_size() % 16 == 0 for size in weight_EOK.shape[1:])
    return (
        weight_EOK.device.type == "cuda"
        and weight_EOK.dtype is torch.bfloat16
        and aligned
        and torch.cuda.get_device_capability(weight_EOK.device) >= _GROUPED_CAPABILITY
    )
