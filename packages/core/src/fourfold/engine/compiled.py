"""What ``fuse`` has torch compile: to kernels that are the same in every run.

Left to itself, torch times a kernel's variants as it is first called and keeps the fastest. Variants of a sum add up in
other orders, so the last bits of a result would be decided by a clock: on an H200 norms of 2816 numbers were added in
blocks of 2048 in one run and of 4096 in the next, and a variant could change after a run's very first batch. With its
option ``deterministic`` torch takes what it can tell without timing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

import torch

if TYPE_CHECKING:
    from torch import nn

P = ParamSpec("P")
R = TypeVar("R")

_OPTIONS: Final[dict[str, Any]] = {"deterministic": True}
#: How many shapes of a norm are compiled. All layers' norms are one function to torch, which gives up after eight: what
#: came ninth would be left as it is, and what comes ninth depends on batches, passes and processes.
_MOST_SHAPES: Final = 64


def compile_function(function: Callable[P, R]) -> Callable[P, R]:
    """``function``, compiled once for all sizes."""
    return torch.compile(function, dynamic=True, options=_OPTIONS)


def compile_modules(modules: Iterable[nn.Module]) -> None:
    """Have modules compiled when they are called, for each shape anew."""
    torch.compiler.config.recompile_limit = _MOST_SHAPES
    for module in modules:
        module.compile(dynamic=False, options=_OPTIONS)
