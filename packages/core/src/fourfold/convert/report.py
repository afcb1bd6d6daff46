"""What a conversion did."""

from __future__ import annotations

from typing import Final, Literal

from fourfold.config import Config

SCHEMA_VERSION: Final = 1


class InexactScale(Config):
    """A scale that the way back would not restore: no float32 has it as its reciprocal.

    ``stored`` is the source's value, ``written`` its reciprocal as the target stores it, ``restored`` the reciprocal
    of that: one float32 away from ``stored``. ``tensor`` is the source's name.
    """

    tensor: str
    stored: float
    written: float
    restored: float


class ConvertReport(Config):
    """The result of :func:`fourfold.convert.convert_checkpoint`. ``num_scales`` counts reciprocals taken."""

    schema_version: Literal[1] = SCHEMA_VERSION
    source_layout: str
    target_layout: str
    num_modules: int
    num_kept_tensors: int
    num_scales: int
    inexact: tuple[InexactScale, ...]
    #: Files of the source folder that belong to its layout or to nobody, and were not carried over.
    files_left_behind: tuple[str, ...]
