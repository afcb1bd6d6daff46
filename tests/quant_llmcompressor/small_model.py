"""What quantizers stumble over, planted in the small model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from toolchain_jobs.inside import make_model

#: Rows of layer 0's dense ``up_proj`` that are this much larger: outlier channels before ``down_proj``.
OUTLIER_ROWS = (3, 40, 71)
OUTLIER_FACTOR = 20.0
#: Of layer 1; its gate and up weights are zero in jobs with ``zero_expert``.
ZERO_EXPERT = ("model.language_model.layers.1.experts.gate_up_proj", 7)


def make_planted_model(folder: Path) -> None:
    """Planted in layer 0: outlier channels; an all-zero block, a tiny block and a negative zero in expert 2."""
    make_model(folder, _plant)


def _plant(model: Any) -> None:
    layer = model.model.language_model.layers[0]
    layer.mlp.up_proj.weight[list(OUTLIER_ROWS)] *= OUTLIER_FACTOR
    down = layer.experts.down_proj
    down[2, 0, :16] = 0
    down[2, 1, :16] = 1e-7
    down[2, 2, 0] = -0.0
