"""Calibration: token sets with seed and hashes, and the coverage of experts."""

from fourfold.calibration.build import build_token_set
from fourfold.calibration.coverage import ExpertCoverage
from fourfold.calibration.spec import CalibrationSpec, Packing
from fourfold.calibration.tokens import TokenBatch, TokenSet, TokenSetRecord

__all__ = [
    "CalibrationSpec",
    "ExpertCoverage",
    "Packing",
    "TokenBatch",
    "TokenSet",
    "TokenSetRecord",
    "build_token_set",
]
