"""Fused experts and their un-fused stand-in: what they are, how they compute.

Shape letters: T tokens, H hidden, I expert width, E experts, k experts a token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

from fourfold.errors import ModelError
from fourfold.models.gemma4 import DOWN, EXPERT_PROJECTIONS, GATE_UP

GATE_UP_NAME = GATE_UP.rpartition(".")[2]
DOWN_NAME = DOWN.rpartition(".")[2]

#: What transformers says about an experts class, with the only values this layout has.
_LAYOUT_FLAGS = {"has_gate": True, "has_bias": False, "is_transposed": False, "is_concatenated": True}


class FusedExperts(NamedTuple):
    """A named module with ``gate_up_proj`` [E, 2I, H], gate rows first, and ``down_proj`` [E, H, I]."""

    name: str
    module: nn.Module

    @property
    def gate_up(self) -> nn.Parameter:
        """``gate_up_proj`` [E, 2I, H]."""
        return self._parameter(GATE_UP_NAME)

    @property
    def down(self) -> nn.Parameter:
        """``down_proj`` [E, H, I]."""
        return self._parameter(DOWN_NAME)

    def _parameter(self, name: str) -> nn.Parameter:
        parameter = self.module._parameters[name]
        assert parameter is not None  # is_fused_experts saw it
        return parameter

    def view(self, expert: int, projection: str) -> torch.Tensor:
        """The matrix of one expert, a view: [I, H] of gate and up, [H, I] of down."""
        if projection == "down_proj":
            return self.down.detach()[expert]
        width = self.down.shape[2]
        rows = slice(0, width) if projection == "gate_proj" else slice(width, 2 * width)
        return self.gate_up.detach()[expert, rows]

    def check(self) -> None:
        """:class:`ModelError` for another arrangement than the one above, or for offloaded parameters."""
        (num_experts, rows, hidden), (num_down, out, width) = self.gate_up.shape, self.down.shape
        if (num_experts, rows, hidden) != (num_down, 2 * width, out):
            raise ModelError(
                f"{self.name}: {GATE_UP_NAME} {list(self.gate_up.shape)} and {DOWN_NAME} "
                f"{list(self.down.shape)} do not fit [E, 2I, H] and [E, H, I]"
            )
        for flag, expected in _LAYOUT_FLAGS.items():
            if getattr(self.module, flag, expected) is not expected:
                raise ModelError(f"{self.name}: experts with {flag}={not expected} are not supported")
        if not callable(getattr(self.module, "act_fn", None)):
            raise ModelError(f"{self.name}: experts without an activation act_fn are not supported")
        if getattr(getattr(self.module, "_hf_hook", None), "offload", False):
            raise ModelError(f"{self.name}: its parameters are offloaded; load the model without CPU or disk offload")


def is_fused_experts(module: nn.Module) -> bool:
    """Whether ``module`` itself owns both fused parameters, in three dimensions."""
    owned = (module._parameters.get(name) for name in (GATE_UP_NAME, DOWN_NAME))
    return all(parameter is not None and parameter.ndim == 3 for parameter in owned)


class ExpertMLP(nn.Module):
    """One expert's linears: ``gate_proj``, ``up_proj`` [I, H] and ``down_proj`` [H, I].

    AutoRound gives gate and up one global scale where the class name says MLP, and only there.
    """

    gate_proj: nn.Linear
    up_proj: nn.Linear
    down_proj: nn.Linear

    def __init__(self, fused: FusedExperts, expert: int, act_fn: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self._act_fn = (act_fn,)  # in a tuple: an activation that is a module stays unregistered, and shared
        for projection in EXPERT_PROJECTIONS:
            setattr(self, projection, _linear_over(fused.view(expert, projection), fused.gate_up.requires_grad))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """[T, H] to [T, H]."""
        # Side by side as in the fused product: CPU activations round the tail of a row by its memory layout.
        gate, up = torch.cat((self.gate_proj(hidden_states), self.up_proj(hidden_states)), dim=-1).chunk(2, dim=-1)
        return self.down_proj(self._act_fn[0](gate) * up)  # type: ignore[no-any-return]


class UnfusedExperts(nn.Module):
    """Stands in for fused experts: children ``0`` ... ``E-1``, whose weights are views of the fused storage.

    :meth:`forward` follows transformers' eager ``Gemma4TextExperts`` step by step, but for the one product
    that gate and up share there. Only routed tokens reach an expert, unless ``calibrate_all_experts`` is set:
    then the other tokens pass through it too, in a call of their own whose result is dropped. So observers
    see every token once an expert, and the output keeps its last bit.
    """

    def __init__(self, fused: FusedExperts, *, calibrate_all_experts: bool = False) -> None:
        super().__init__()
        self._fused = (fused,)  # in a tuple: its parameters must not appear twice in this model
        self.num_experts = fused.gate_up.shape[0]
        self.calibrate_all_experts = calibrate_all_experts
        for expert in range(self.num_experts):
            self.add_module(str(expert), ExpertMLP(fused, expert, fused.module.act_fn))  # type: ignore[arg-type]
        self.train(fused.module.training)

    @property
    def fused(self) -> FusedExperts:
        """The module this one stands in for."""
        return self._fused[0]

    def __len__(self) -> int:
        return self.num_experts

    def __iter__(self) -> Iterator[ExpertMLP]:
        """The experts in order, as a ``nn.ModuleList`` of them would give them; ModelOpt's export asks for it."""
        for expert in range(self.num_experts):
            yield self.get_submodule(str(expert))  # type: ignore[misc]

    def linears(self) -> Iterator[tuple[int, str, nn.Module]]:
        """Every (expert, projection, linear)."""
        for expert in range(self.num_experts):
            for projection in EXPERT_PROJECTIONS:
                yield expert, projection, self.get_submodule(f"{expert}.{projection}")

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """[T, H] to [T, H]; ``top_k_index`` and ``top_k_weights`` are [T, k]."""
        final = torch.zeros_like(hidden_states)
        with torch.no_grad():
            expert_mask = functional.one_hot(top_k_index, num_classes=self.num_experts).permute(2, 1, 0)
            hit = expert_mask.sum(dim=(-1, -2)).gt(0).nonzero().flatten().tolist()
        for expert in hit:
            top_k_pos, token = torch.where(expert_mask[expert])
            current = self.get_submodule(str(expert))(hidden_states[token])
            current = current * top_k_weights[token, top_k_pos, None]
            final.index_add_(0, token, current.to(final.dtype))
        if self.calibrate_all_experts:
            self._show_unrouted(hidden_states, expert_mask)
        return final

    def _show_unrouted(self, hidden_states: torch.Tensor, expert_mask: torch.Tensor) -> None:
        for expert in range(self.num_experts):
            rest = expert_mask[expert].sum(0).eq(0).nonzero().flatten()
            if len(rest):
                self.get_submodule(str(expert))(hidden_states[rest])


def _linear_over(weight: torch.Tensor, requires_grad: bool) -> nn.Linear:
    """A linear without bias whose parameter is ``weight`` itself; nothing is allocated."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad)
    return linear
