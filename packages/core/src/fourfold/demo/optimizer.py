"""AdamW on float32 masters of a BF16 model, checkpointed whole.

The model computes in BF16 throughout, exactly as the saved weights will: what is evaluated during training is what is
saved. The masters gather the small updates that BF16 would round away.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from fourfold.demo.recipe import Recipe


def trainable_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter, and every buffer that a checkpoint stores (``layer_scalar``, the vision standardisation)."""
    tensors: dict[str, torch.Tensor] = dict(model.named_parameters())
    stored = model.state_dict()
    tensors.update({name: buffer for name, buffer in model.named_buffers() if name in stored})
    return tensors


class MasterAdamW:
    """Float32 master copies of a model's tensors with their AdamW."""

    def __init__(self, model: nn.Module, recipe: Recipe) -> None:
        self._recipe = recipe
        self._model_tensors = trainable_tensors(model)
        for tensor in self._model_tensors.values():
            tensor.requires_grad_(True)
        self._masters = {name: tensor.detach().float().clone() for name, tensor in self._model_tensors.items()}
        for master in self._masters.values():
            master.grad = torch.zeros_like(master)
        matrices = [m for m in self._masters.values() if m.dim() >= 2]
        vectors = [m for m in self._masters.values() if m.dim() < 2]
        device = next(iter(self._masters.values())).device
        self._adamw = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": recipe.weight_decay},
                {"params": vectors, "weight_decay": 0.0},
            ],
            lr=recipe.peak_learning_rate,
            betas=recipe.betas,
            fused=device.type == "cuda",
        )

    @torch.no_grad()
    def step(self, step: int) -> torch.Tensor:
        """Apply and clear the gradients; returns their norm before clipping."""
        gradients = [
            tensor.grad if tensor.grad is not None else torch.zeros_like(tensor)
            for tensor in self._model_tensors.values()
        ]
        master_gradients = [m.grad for m in self._masters.values() if m.grad is not None]
        torch._foreach_copy_(master_gradients, gradients)
        norm = nn.utils.clip_grad_norm_(list(self._masters.values()), self._recipe.max_gradient_norm)
        for group in self._adamw.param_groups:
            group["lr"] = self._recipe.learning_rate(step)
        self._adamw.step()
        torch._foreach_copy_(list(self._model_tensors.values()), list(self._masters.values()))
        for tensor in self._model_tensors.values():
            tensor.grad = None
        return norm

    def state(self) -> dict[str, Any]:
        """Masters and moments, for a checkpoint."""
        return {"masters": self._masters, "adamw": self._adamw.state_dict()}

    @torch.no_grad()
    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state` gave, into the model too."""
        for name, master in self._masters.items():
            master.copy_(state["masters"][name])
            self._model_tensors[name].copy_(master)
        self._adamw.load_state_dict(state["adamw"])
