"""The report as one page: no script, nothing loaded from elsewhere, readable on a narrow screen."""

from __future__ import annotations

from html import escape

from fourfold.compare.plots import bars
from fourfold.compare.report import CompareReport, TableRow
from fourfold.compare.tables import Table, report_tables, verdict

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #fff; --line: #d0d7de; --bar: #3b6ea8; --good: #1a7f37;
  --bad: #b42318; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --paper: #0d1117; --line: #30363d; --bar: #6ea8fe;
  --good: #3fb950; --bad: #f85149; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 68rem;
  margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.3rem; overflow-wrap: anywhere; } h2 { font-size: 1.05rem; margin-top: 2rem; }
.equal { color: var(--good); } .unequal { color: var(--bad); }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .85rem; }
th, td { border-bottom: 1px solid var(--line); padding: .25rem .6rem; text-align: left; vertical-align: top; }
td { font-variant-numeric: tabular-nums; } figure { margin: 1.5rem 0; } figcaption { font-weight: 600; }
svg { width: 100%; max-width: 40rem; height: auto; } svg rect { fill: var(--bar); }
svg text { fill: var(--ink); font-size: 13px; } svg .label { text-anchor: end; }
"""


def render_html(report: CompareReport) -> str:
    """A self-contained page of the whole report but the full list of differences, which the JSON has."""
    title = verdict(report)
    mark = "equal" if report.equal else "unequal"
    body = [f'<h1 class="{mark}">{escape(title)}</h1>']
    if report.source is not None:
        body.append(f"<p>Errors and rules are against the source {escape(report.source)}.</p>")
    overview, *others = report_tables(report)
    body.append(_table(overview))
    body.extend(_plots(report))
    body.extend(_table(table, heading=True) for table in others)
    content = "\n".join(body)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n{content}\n</body></html>\n"
    )


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


def _table(table: Table, *, heading: bool = False) -> str:
    lines = [f"<h2>{escape(table.title)}</h2>"] if heading else []
    lines.append('<div class="scroll"><table>')
    if any(table.header):
        lines.append(_row(table.header, "th"))
    lines += [_row(row, "td") for row in table.rows]
    lines.append("</table></div>")
    return "\n".join(lines)


def _row(cells: tuple[str, ...], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"
