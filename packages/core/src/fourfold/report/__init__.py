"""What was measured, for readers: a page, a Markdown report, a model card; nothing in them that was not measured."""

from fourfold.report.card import write_card
from fourfold.report.collect import Measured, collect
from fourfold.report.write import write_report

__all__ = ["Measured", "collect", "write_card", "write_report"]
