"""What NVFP4 costs, layer by layer and role by role: weights, outputs, the residual stream, the model's own answers."""

from fourfold.sensitivity.engine import measure_sensitivity
from fourfold.sensitivity.report import (
    SENSITIVITY_FILE,
    GroupRow,
    LinearRow,
    RoleRow,
    SensitivityReport,
    read_sensitivity,
)
from fourfold.sensitivity.spec import Divergence, SensitivityConfig, default_rows
from fourfold.sensitivity.tables import sensitivity_tables

__all__ = [
    "SENSITIVITY_FILE",
    "Divergence",
    "GroupRow",
    "LinearRow",
    "RoleRow",
    "SensitivityConfig",
    "SensitivityReport",
    "default_rows",
    "measure_sensitivity",
    "read_sensitivity",
    "sensitivity_tables",
]
