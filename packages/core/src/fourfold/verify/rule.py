"""What a rule is: an id, a title, the reason why a server cares, and one function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from fourfold.checkpoint.untrusted import printable
from fourfold.verify.report import MAX_LISTED, Finding

#: A message repeats names of the checkpoint; none may fill a screen, or a disk.
_MAX_MESSAGE = 1000


class Phase(StrEnum):
    """When a rule looks, and at what."""

    FOLDER = "folder"  # a Checkpoint, before any tensor is read
    TENSOR = "tensor"  # a PlainTensor: a piece of one that belongs to no quantized module, with its values
    MODULE = "module"  # a ModuleView: one quantized module, with its values
    MISFIT = "misfit"  # a Misfit: a module whose decoded weight is not the source's; the first to explain it ends it
    END = "end"  # a Checkpoint, with all scalar scales read


class Need(StrEnum):
    """What a rule cannot do without; the text is the reason it gives when it is skipped."""

    SOURCE = "no source model given"
    MANIFEST = "no manifest.json beside the checkpoint"
    MODEL = "config.json describes no Gemma 4 mixture of experts"
    LAYOUT = "the tensors tell no layout"
    CONFIG = "config.json cannot be read"


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One rule. ``check`` is called with a :class:`Look` and the subject of its phase.

    ``is_doubt`` marks what no file can decide: reported like any finding, but it makes no checkpoint wrong.
    ``rank`` orders misfit rules, of which the first to explain a misfit ends it; equal ones stand in the table's order.
    """

    id: str
    title: str
    why: str
    phase: Phase
    check: Callable[[Look, Any], None]
    needs: tuple[Need, ...] = ()
    is_doubt: bool = False
    rank: int = 0


@dataclass
class Look:
    """Where one rule notes what it looked at and what was wrong."""

    rule: str
    checked: int = 0
    num_findings: int = 0
    findings: list[Finding] = field(default_factory=list)
    in_pieces: bool = False
    _last: str = ""

    def count(self, number: int = 1) -> None:
        """``number`` more things were looked at."""
        self.checked += number

    def wrong(self, tensor: str, *, found: object, expected: object, message: str) -> None:
        """Something is wrong with ``tensor``; ``message`` is one sentence that says what, and what to do.

        A tensor that is looked at in pieces is reported once, for its first bad piece.
        """
        if self.in_pieces and self._last == tensor:
            return
        self._last = tensor
        self.num_findings += 1
        if len(self.findings) < MAX_LISTED:
            self.findings.append(
                Finding(
                    rule=self.rule,
                    tensor=printable(tensor),
                    found=printable(str(found)),
                    expected=printable(str(expected)),
                    message=printable(message, _MAX_MESSAGE),
                )
            )
