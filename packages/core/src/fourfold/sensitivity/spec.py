"""What a sensitivity run is to measure."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from fourfold.calibration import CalibrationSpec
from fourfold.config import Config, Scheme
from fourfold.plan import default_calibration


class Divergence(StrEnum):
    """For which choices the divergence of the model's answers is measured, and what that costs.

    ``none``; ``roles``: each role in all layers, and everything: four more streams; ``groups``: each role of each
    layer too: on average as many more streams as the model has layers, times one and a half.
    """

    NONE = "none"
    ROLES = "roles"
    GROUPS = "groups"


class SensitivityConfig(Config):
    """What to measure. ``model`` is an unquantized model, or a checkpoint whose ``source`` is one."""

    model: str
    source: str | None = None
    scheme: Scheme | None = None
    calibration: CalibrationSpec
    divergence: Divergence = Divergence.ROLES
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: str = "cpu"


def default_rows(model: str) -> dict[str, object]:
    """Calibration rows when none are named: the demo's own; else 32 of 512 tokens, as every layer runs many times."""
    return default_calibration(model) or {"samples": 32, "sequence_length": 512, "batch_size": 8}
