"""Two checkpoints or artifacts of any layout, compared tensor by tensor, every difference with its cause."""

from fourfold.compare.engine import DEFAULT_TOLERANCE, compare
from fourfold.compare.html import render_html
from fourfold.compare.report import CAUSE_TEXT, Cause, CompareReport, Difference, Level, Part, Status
from fourfold.compare.tables import report_tables, verdict

__all__ = [
    "CAUSE_TEXT",
    "DEFAULT_TOLERANCE",
    "Cause",
    "CompareReport",
    "Difference",
    "Level",
    "Part",
    "Status",
    "compare",
    "render_html",
    "report_tables",
    "verdict",
]
