"""What a verification says: how much was looked at, and what was wrong."""

from __future__ import annotations

from pydantic import Field

from fourfold.config import Config
from fourfold.interfaces.load_check import LoadReport

#: Findings listed for one rule; ``num_findings`` counts them all.
MAX_LISTED = 100


class Finding(Config):
    """One thing that is wrong. ``tensor`` is a tensor, a module, a file or a config key: whatever the rule looks at."""

    rule: str
    tensor: str
    found: str
    expected: str
    message: str


class VerifyReport(Config):
    """The result of :func:`fourfold.verify.verify_checkpoint`.

    Attributes:
        ok: no rule failed itself or found anything wrong; rules whose findings are doubts (``Rule.is_doubt``) do not
            count.
        layout: of the tensors; None when they tell none.
        scheme: of the tensors, ``W4A4``, ``W4A16`` or ``W4A4 + W4A16``.
        checked: things looked at, by rule id. A rule with 0 that is not in ``skipped`` had nothing to look at.
        skipped: rules that could not look at all, with the reason (no source given, no manifest), or failed themselves.
        findings: at most :data:`MAX_LISTED` a rule, in order of rule.
        num_findings: all findings, by rule id; rules without any are left out.
        num_transformed: modules changed on purpose before rounding (AWQ, SmoothQuant), so compared to the source under
            factors of their rows or columns, which must cancel (FF099).
        warnings: loaders known to read such a checkpoint wrongly; no fault of its own.
        bytes_read: tensor data read, the source's not counted.
        load: what a server made of it, where that was asked for; its findings count for ``ok``.
    """

    ok: bool
    layout: str | None
    scheme: str | None
    checked: dict[str, int]
    skipped: dict[str, str] = Field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    num_findings: dict[str, int] = Field(default_factory=dict)
    num_transformed: int = 0
    warnings: tuple[str, ...] = ()
    bytes_read: int = 0
    load: LoadReport | None = None
