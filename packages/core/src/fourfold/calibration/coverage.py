"""Expert coverage: how many tokens the real router sent to each expert.

The count is taken from the indices an experts module is called with, so it holds for fused experts, un-fused
ones and any wrapper that keeps transformers' signature ``(hidden_states, top_k_index, top_k_weights)``; and
it is the same whether or not all experts are shown all tokens for calibration.

Padding: an :class:`ExpertCoverage` also watches the model's own calls, and positions that a call's
``attention_mask`` [B, T] marks as padding are not counted. Token sets packed by ``concatenate`` have none. A
toolchain that calls the layers itself, without the model, gives no mask: every position then counts.
"""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from fourfold.errors import CalibrationError
from fourfold.models.gemma4 import GATE_UP

if TYPE_CHECKING:
    import torch
    from torch import nn

#: The last part of an experts module's name.
_EXPERTS = GATE_UP.partition(".")[0]


class ExpertCoverage:
    """Counts tokens per expert while it is entered.

    In use::

        with ExpertCoverage(model, num_experts=128) as coverage:
            for inputs in tokens.model_inputs():
                model(**inputs)
        coverage.expert_token_count["model.language_model.layers.0.experts"]  # int64 [128]
    """

    def __init__(self, model: nn.Module, num_experts: int) -> None:
        import torch

        found = {name: module for name, module in model.named_modules() if name.rpartition(".")[2] == _EXPERTS}
        if not found:
            raise CalibrationError(f"no module named {_EXPERTS!r} in the model; nothing to count")
        self._model, self._modules = model, found
        self._mask: torch.Tensor | None = None
        self._handles: list[Any] = []
        self._counts = {name: torch.zeros(num_experts, dtype=torch.int64) for name in found}

    @property
    def expert_token_count(self) -> dict[str, torch.Tensor]:
        """int64 [E] on the CPU by name of the experts module, in model order: the tokens so far."""
        return {name: counts.cpu() for name, counts in self._counts.items()}

    def __enter__(self) -> Self:
        self._handles = [
            self._model.register_forward_pre_hook(self._take_mask, with_kwargs=True),
            self._model.register_forward_hook(self._drop_mask, always_call=True),
        ]
        for name, module in self._modules.items():
            self._handles.append(module.register_forward_pre_hook(self._counter(name), with_kwargs=True))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _take_mask(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        mask = kwargs.get("attention_mask")
        self._mask = mask if getattr(mask, "ndim", None) == 2 else None

    def _drop_mask(self, *call: Any) -> None:
        self._mask = None

    def _counter(self, name: str) -> Any:
        def count(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            index = kwargs["top_k_index"] if "top_k_index" in kwargs else args[1]
            self._add(name, index.detach())

        return count

    def _add(self, name: str, index: torch.Tensor) -> None:
        """``index`` [T, k]."""
        if self._mask is not None:
            if self._mask.numel() != index.shape[0]:
                raise CalibrationError(
                    f"{name}: called with {index.shape[0]} tokens under an attention mask of "
                    f"{list(self._mask.shape)}; padding cannot be told apart"
                )
            index = index[self._mask.flatten().to(index.device) != 0]
        counts = self._counts[name].to(index.device)
        if index.numel() and int(index.max()) >= len(counts):
            raise CalibrationError(f"{name}: routed to expert {int(index.max())} of {len(counts)}")
        self._counts[name] = counts + index.flatten().bincount(minlength=len(counts))
