"""The built-in unfuser: per-expert ``nn.Linear`` that are views of the fused parameters, and the exact
inverse.

Nothing is copied: a 49 GB model stays 49 GB, any toolchain sees plain linears, and what is written through a
linear in place is written into the fused parameter.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fourfold.errors import ModelError
from fourfold.interfaces.unfuser import Unfuser
from fourfold.models.gemma4 import DOWN, GATE_UP
from fourfold.reference.experts import DOWN_NAME, GATE_UP_NAME, FusedExperts, UnfusedExperts, is_fused_experts
from fourfold.reference.options import ReferenceUnfuserOptions


class ReferenceUnfuser(Unfuser[ReferenceUnfuserOptions]):
    """Replaces fused experts by :class:`UnfusedExperts` in place. Works on any device, meta included."""

    def unfuse(self, model: nn.Module) -> None:
        """Un-fuse every experts module of ``model``.

        The model is unchanged when this raises :class:`ModelError`: fused experts in another arrangement, or
        under a name we do not know (the message gives the share of parameters that would be skipped); none at
        all; experts already un-fused.
        """
        found = [FusedExperts(name, module) for name, module in model.named_modules() if is_fused_experts(module)]
        _refuse_strangers(model)
        if not found:
            done = any(isinstance(module, UnfusedExperts) for module in model.modules())
            raise ModelError("the experts are already un-fused" if done else f"no fused experts ({GATE_UP}) found")
        for fused in found:
            fused.check()
        for fused in found:
            unfused = UnfusedExperts(fused, calibrate_all_experts=self.options.calibrate_all_experts)
            model.set_submodule(fused.name, unfused)

    def fuse(self, model: nn.Module) -> None:
        """Put the fused modules back, their parameter objects included.

        A linear whose weight was changed in place needs nothing; one whose weight is another tensor by now
        has its values written back. When all linears of a layer moved to another device or dtype, the fused
        parameter follows.

        Raises :class:`ModelError`, with the model unchanged, for a linear that cannot be written back:
        replaced by a module without a weight, of another shape, or of another dtype than its siblings.
        """
        found = [(name, module) for name, module in model.named_modules() if isinstance(module, UnfusedExperts)]
        if not found:
            raise ModelError("no un-fused experts found; nothing to fuse")
        checked = [(name, unfused, _weights(name, unfused)) for name, unfused in found]
        for name, unfused, weights in checked:
            _write_back(unfused.fused, weights)
            unfused.fused.module.train(unfused.training)
            model.set_submodule(name, unfused.fused.module)


_Weights = dict[tuple[int, str], torch.Tensor]


def _weights(name: str, unfused: UnfusedExperts) -> _Weights:
    """Every linear's weight, checked against the view it started as."""
    weights: _Weights = {}
    for expert, projection, linear in unfused.linears():
        weight = getattr(linear, "weight", None)
        where = f"{name}.{expert}.{projection}"
        if not isinstance(weight, torch.Tensor):
            raise ModelError(f"{where}: {type(linear).__name__} has no weight to write back")
        if getattr(linear, "bias", None) is not None:
            raise ModelError(f"{where}: has a bias, which fused experts cannot hold")
        expected = unfused.fused.view(expert, projection).shape
        if weight.shape != expected:
            raise ModelError(f"{where}: weight has shape {list(weight.shape)}; fused experts hold {list(expected)}")
        weights[expert, projection] = weight.detach()
    kinds = {(weight.dtype, weight.device) for weight in weights.values()}
    if len(kinds) > 1:
        listed = ", ".join(sorted(f"{dtype} on {device}" for dtype, device in kinds))
        raise ModelError(f"{name}: the experts' weights are not of one kind ({listed}); fused they must be")
    return weights


def _write_back(fused: FusedExperts, weights: _Weights) -> None:
    first = next(iter(weights.values()))
    for parameter in (fused.gate_up, fused.down):
        if (parameter.dtype, parameter.device) != (first.dtype, first.device):
            parameter.data = torch.empty_like(parameter, dtype=first.dtype, device=first.device)
    for (expert, projection), weight in weights.items():
        view = fused.view(expert, projection)
        if weight.is_meta or (weight.data_ptr() == view.data_ptr() and weight.stride() == view.stride()):
            continue
        view.copy_(weight)


def _refuse_strangers(model: nn.Module) -> None:
    num_experts = _num_experts(model)
    strangers: dict[str, int] = {}
    for module_name, module in model.named_modules():
        if is_fused_experts(module) or isinstance(module, nn.modules.conv._ConvNd):
            continue
        for name, parameter in module.named_parameters(module_name, recurse=False):
            if parameter.ndim == 3 and ("expert" in name.lower() or parameter.shape[0] == num_experts):
                strangers[name] = parameter.numel()
    if strangers:
        total = sum(parameter.numel() for parameter in model.parameters())
        # a lone down_proj has a name we know; the one that is missing beside it has not
        stranger = min(strangers, key=lambda name: name.rpartition(".")[2] in (GATE_UP_NAME, DOWN_NAME))
        share = 100 * sum(strangers.values()) / total
        raise ModelError(
            f"{stranger} looks like fused experts under a name Fourfold does not know; "
            f"quantizing would skip {share:.1f} % of the parameters ({len(strangers)} tensors); "
            f"known names: {GATE_UP}, {DOWN}"
        )


def _num_experts(model: nn.Module) -> int | None:
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return getattr(text, "num_experts", None)
