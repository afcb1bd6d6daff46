"""Two checkpoints or artifacts of any layout, compared tensor by tensor, every difference with its cause."""

from fourfold.compare.engine import DEFAULT_TOLERANCE, compare
from fourfold.compare.report import CAUSE_TEXT, Cause, CompareReport, Level, Part, Status

__all__ = ["CAUSE_TEXT", "DEFAULT_TOLERANCE", "Cause", "CompareReport", "Level", "Part", "Status", "compare"]
