"""What a server did with every tensor of a checkpoint when it loaded it; the result of ``fourfold verify --load``."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from fourfold.config import Config

#: Findings listed for one rule; ``num_findings`` counts them all.
MAX_LISTED = 100


class LoadRule(StrEnum):
    """What may go wrong between a checkpoint and a server's parameters."""

    REFUSED = "LD001"
    UNWRITTEN = "LD010"
    IGNORED = "LD020"
    WEIGHT_SCALE = "LD030"
    INPUT_SCALE = "LD031"
    UNUSABLE = "LD032"

    @property
    def why(self) -> str:
        """Why it matters."""
        return _WHY[self]


_WHY = {
    LoadRule.REFUSED: "the server does not start",
    LoadRule.UNWRITTEN: "the server computes with whatever was in memory, without a word",
    LoadRule.IGNORED: "the server drops it without a word; what it was for is missing",
    LoadRule.WEIGHT_SCALE: "the server decodes a weight with another one's global scale: all its values are wrong by "
    "their ratio",
    LoadRule.INPUT_SCALE: "the server quantizes activations with another module's input scale than the checkpoint was "
    "made with",
    LoadRule.UNUSABLE: "its reciprocal or its product is zero, infinite or NaN, and so are the module's outputs",
}


class LoadFinding(Config):
    """One thing that a server's loader did wrong, or could not do right. ``tensor`` is a key or a parameter."""

    rule: LoadRule
    tensor: str
    message: str


class LoadReport(Config):
    """The result of :meth:`fourfold.interfaces.server.Server.check_load`.

    Attributes:
        ok: nothing was found.
        server: name and version of what loaded it.
        num_keys: tensors in the checkpoint's files.
        num_parameters: parameters and loaded buffers of the server's model, all poisoned first.
        num_elements: their elements.
        findings: at most :data:`MAX_LISTED` a rule, in order of rule.
        num_findings: all findings, by rule; rules without any are left out.
        notes: what differs between a server's backends, and is no fault.
    """

    ok: bool
    server: str
    num_keys: int
    num_parameters: int
    num_elements: int
    findings: tuple[LoadFinding, ...] = ()
    num_findings: dict[LoadRule, int] = Field(default_factory=dict)
    notes: tuple[str, ...] = ()
