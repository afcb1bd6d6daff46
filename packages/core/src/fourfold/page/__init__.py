"""Tables, plots and the one-file page that holds them: no script, no library, nothing loaded from elsewhere."""

from fourfold.page.html import paragraph, render_page, section, table_html
from fourfold.page.plots import Series, Span, bars, heat_map, lines, spans
from fourfold.page.tables import NONE, Table, markdown_table

__all__ = [
    "NONE",
    "Series",
    "Span",
    "Table",
    "bars",
    "heat_map",
    "lines",
    "markdown_table",
    "paragraph",
    "render_page",
    "section",
    "spans",
    "table_html",
]
