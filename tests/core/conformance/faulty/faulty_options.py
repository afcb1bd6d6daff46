"""Options with one fault each."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, field_serializer

from fourfold.interfaces.quantizer import QuantizerOptions


class Sound(QuantizerOptions):
    algorithm: Literal["max"] = "max"


class AnyAlgorithm(QuantizerOptions):
    pass


class OpenToAll(Sound):
    model_config = ConfigDict(frozen=True, extra="allow")


class Thawed(Sound):
    model_config = ConfigDict(frozen=False, extra="forbid")


class TakesAnything(Sound):
    anything: Any = None


class OtherInJson(Sound):
    steps: int = 1

    @field_serializer("steps")
    def _more(self, steps: int) -> int:
        return steps + 1
