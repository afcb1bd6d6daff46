"""Watch the routers of a Gemma 4 model: the load-balancing loss of training, and tokens per expert.

Shape letters: T tokens, E experts, K experts a token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

_RouterHook = Callable[[nn.Module, object, tuple[torch.Tensor, ...]], None]


class RouterWatch:
    """Collects each router's output while active.

    ``balance_loss`` follows Switch Transformers: E times the sum over experts of (share of the token slots) times
    (mean probability), 1 when both are uniform, averaged over layers. ``counts_LE`` adds up token slots by layer and
    expert over all forward passes watched. Positions where ``kept_T`` is False (padding) count for neither.
    """

    def __init__(self, num_layers: int, num_experts: int, device: torch.device) -> None:
        self.counts_LE = torch.zeros(num_layers, num_experts, dtype=torch.int64, device=device)
        self.kept_T: torch.Tensor | None = None
        self._losses: list[torch.Tensor] = []

    def start_pass(self, kept: torch.Tensor) -> None:
        """Announce the next forward pass; ``kept`` is bool, True for tokens that count, of any shape."""
        self.kept_T = kept.reshape(-1)
        self._losses.clear()

    def pause(self) -> None:
        """Take no notice of what follows, until the next :meth:`start_pass`."""
        self.kept_T = None

    def balance_loss(self) -> torch.Tensor:
        """The pass's loss, averaged over its routers."""
        return torch.stack(self._losses).mean()

    def record(self, layer: int, probabilities_TE: torch.Tensor, chosen_TK: torch.Tensor) -> None:
        """Take one router's output."""
        if self.kept_T is None:
            return
        num_experts = probabilities_TE.shape[-1]
        weight_T = self.kept_T.to(torch.float32)
        slots_E = torch.zeros(num_experts, device=weight_T.device).index_add_(
            0, chosen_TK.reshape(-1), weight_T.repeat_interleave(chosen_TK.shape[-1])
        )
        self.counts_LE[layer] += slots_E.to(torch.int64)
        share_E = slots_E / slots_E.sum()
        mean_E = (probabilities_TE * weight_T[:, None]).sum(0) / weight_T.sum()
        self._losses.append(num_experts * (share_E * mean_E).sum())


@contextmanager
def watch_routers(model: nn.Module) -> Iterator[RouterWatch]:
    """Watch every router of ``model`` through forward hooks, removed on leaving."""
    from transformers.models.gemma4.modeling_gemma4 import Gemma4TextRouter

    routers = [module for module in model.modules() if isinstance(module, Gemma4TextRouter)]
    if not routers:
        raise ValueError("the model has no Gemma 4 router to watch")
    first = routers[0].proj.weight
    watch = RouterWatch(len(routers), first.shape[0], first.device)

    def hook_of(layer: int) -> _RouterHook:
        def hook(_module: nn.Module, _inputs: object, outputs: tuple[torch.Tensor, ...]) -> None:
            probabilities_TE, _weights, chosen_TK = outputs
            watch.record(layer, probabilities_TE, chosen_TK)

        return hook

    handles = [router.register_forward_hook(hook_of(layer)) for layer, router in enumerate(routers)]
    try:
        yield watch
    finally:
        for handle in handles:
            handle.remove()
