"""The report as one page: no script, nothing loaded from elsewhere, readable on a narrow screen."""

from __future__ import annotations

from fourfold.compare.report import CompareReport, TableRow
from fourfold.compare.tables import report_tables, verdict
from fourfold.page import bars, paragraph, render_page, table_html


def render_html(report: CompareReport) -> str:
    """A self-contained page of the whole report but the full list of differences, which the JSON has."""
    body = []
    if report.source is not None:
        body.append(paragraph(f"Errors and rules are against the source {report.source}."))
    overview, *others = report_tables(report)
    body.append(table_html(overview))
    body.extend(_plots(report))
    body.extend(table_html(table, heading="h2") for table in others)
    return render_page(verdict(report), body, mark="equal" if report.equal else "unequal")


def _plots(report: CompareReport) -> list[str]:
    plots = [bars(h.title, h.labels, h.counts, logarithmic=True) for h in report.histograms if any(h.counts)]
    for what, rows in (("layer", report.by_layer), ("role", report.by_role)):
        plots += _share_plot(f"codes that differ, by {what}", rows, "codes_differing_percent")
        plots += _share_plot(f"block scales that differ, by {what}", rows, "block_scales_differing_percent")
    return plots


def _share_plot(title: str, rows: tuple[TableRow, ...], field: str) -> list[str]:
    shown = [(row.key, getattr(row, field)) for row in rows if getattr(row, field) is not None]
    if not any(value for _, value in shown):
        return []
    keys, values = zip(*shown, strict=True)
    return [bars(title, keys, values, unit=" %")]
