"""Checks of an unfuser, on the suite's model loaded in memory.

Shape letters: H hidden, I expert width, E experts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fourfold.checkpoint.index import TensorFolder
from fourfold.conformance.model import load_model, logits
from fourfold.conformance.subject import ConformanceError, NotApplicable, Subject, require
from fourfold.errors import ModelError
from fourfold.models.gemma4 import LinearModule, ModuleKind, read_gemma4

if TYPE_CHECKING:
    import torch
    from torch import nn


def experts_become_named_linears(subject: Subject) -> None:
    """After ``unfuse`` every expert matrix is an ``nn.Linear`` of its canonical name, with the source's values."""
    import torch
    from torch import nn

    if subject.keeps_fused:
        raise NotApplicable("the experts stay fused, for its quantizer to handle")
    source = TensorFolder(subject.model_path)
    model = _unfused(subject)
    for module in _experts(source):
        linear = _submodule(model, module.name)
        require(isinstance(linear, nn.Linear), f"{module.name}: {type(linear).__name__} after unfuse, not an nn.Linear")
        require(
            torch.equal(linear.weight.detach().cpu(), module.read(source)),
            f"{module.name}: its weight is not the source's {list(module.shape)} slice of {module.tensor}",
        )


def outputs_are_equal(subject: Subject) -> None:
    """Un-fusing does not change what the model computes, up to ``output_tolerance``."""
    model = load_model(subject.model_path)
    before = logits(model)
    subject.implementation().unfuse(model)
    _require_close(before, logits(model), subject.output_tolerance, "unfuse changes the logits")


def fuse_is_the_inverse(subject: Subject) -> None:
    """``fuse`` after ``unfuse`` gives back the same state dict, to the byte, and the same logits."""
    model = load_model(subject.model_path)
    before, state = logits(model), _state(model)
    unfuser = subject.implementation()
    unfuser.unfuse(model)
    unfuser.fuse(model)
    after = _state(model)
    require(state.keys() == after.keys(), f"fuse leaves other tensors: {sorted(state.keys() ^ after.keys())[:4]}")
    for name, value in state.items():
        require(_same_bytes(value, after[name]), f"{name}: not the same bytes after unfuse and fuse")
    _require_close(before, logits(model), 0.0, "the logits differ after unfuse and fuse")


def changes_are_carried_back(subject: Subject) -> None:
    """What is written to an expert's linear stands in the fused tensor after ``fuse``, and nothing else moved."""
    if subject.keeps_fused:
        raise NotApplicable("the experts stay fused, for its quantizer to handle")
    import torch

    model = load_model(subject.model_path)
    state = _state(model)
    unfuser = subject.implementation()
    unfuser.unfuse(model)
    for changed in _one_of_each(TensorFolder(subject.model_path)):
        with torch.no_grad():
            _submodule(model, changed.name).weight.mul_(2)
        state[changed.tensor][changed.slices] *= 2
    unfuser.fuse(model)
    after = _state(model)
    for name, value in state.items():
        require(name in after, f"{name}: gone after fuse")
        require(_same_bytes(value, after[name]), f"{name}: changes of one expert's linear were not carried back alone")


def strangers_are_refused(subject: Subject) -> None:
    """A model without fused experts is a :class:`ModelError`, not a run that skips them."""
    from torch import nn

    model = nn.Sequential(nn.Linear(4, 4))
    try:
        subject.implementation().unfuse(model)
    except ModelError:
        return
    raise ConformanceError("unfuse accepts a model without fused experts; raise ModelError, so that nothing is skipped")


def _unfused(subject: Subject) -> nn.Module:
    model = load_model(subject.model_path)
    subject.implementation().unfuse(model)
    return model


def _experts(source: TensorFolder) -> list[LinearModule]:
    return [module for module in read_gemma4(source).linears.values() if module.kind is ModuleKind.EXPERT]


def _one_of_each(source: TensorFolder) -> list[LinearModule]:
    """Expert 3's three matrices, of layer 1."""
    return [module for module in _experts(source) if module.layer == 1 and module.expert == 3]


def _submodule(model: nn.Module, name: str) -> Any:
    try:
        return model.get_submodule(name)
    except AttributeError:
        raise ConformanceError(f"{name}: no such module after unfuse") from None


def _state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def _same_bytes(a: torch.Tensor, b: torch.Tensor) -> bool:
    import torch

    return (
        a.dtype == b.dtype
        and a.shape == b.shape
        and torch.equal(a.reshape(-1).view(torch.uint8), b.contiguous().reshape(-1).view(torch.uint8))
    )


def _require_close(expected: torch.Tensor, found: torch.Tensor, tolerance: float, message: str) -> None:
    difference = float((found - expected).norm() / expected.norm())
    require(difference <= tolerance, f"{message}: relative difference {difference:.3g}, allowed {tolerance:.3g}")
