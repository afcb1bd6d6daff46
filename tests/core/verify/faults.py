"""What a planted fault is; the catalogue stands in ``catalogue``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fourfold.checkpoint.layouts import COMPRESSED_TENSORS, MODELOPT

from .good_checkpoints import Editable

BOTH = (MODELOPT.name, COMPRESSED_TENSORS.name)


@dataclass(frozen=True)
class Fault:
    """One planted fault.

    ``rule`` names its cause; ``also`` are rules that rightly find it too. ``plant`` changes the checkpoint (given the
    source's folder) before it is saved, ``after`` the files after that. ``blind``: found without the source as well.
    """

    name: str
    rule: str
    plant: Callable[[Editable, Path], object] | None = None
    after: Callable[[Path], object] | None = None
    also: tuple[str, ...] = ()
    layouts: tuple[str, ...] = BOTH
    variant: dict[str, Any] = field(default_factory=dict)
    manifest: bool = False
    blind: bool = True
