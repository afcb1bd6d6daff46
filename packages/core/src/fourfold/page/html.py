"""A page in one file: light or dark as the reader's system is, wide tables scroll by themselves, text never does."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from fourfold.page.tables import Table

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --faint: #57606a; --paper: #fff; --line: #d0d7de; --good: #1a7f37;
  --bad: #b42318; --s0: #0b62b0; --s1: #c2570c; --s2: #117a52; --s3: #8b3fb0; --s4: #8a6d00; --s5: #b0306a; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --faint: #9aa4af; --paper: #0d1117; --line: #30363d;
  --good: #3fb950; --bad: #f85149; --s0: #6cb0ff; --s1: #ffa657; --s2: #56d39a; --s3: #d2a8ff; --s4: #e3c341;
  --s5: #ff8fbd; } }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 68rem;
  margin: 0 auto; padding: 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.35rem; line-height: 1.25; } h2 { font-size: 1.1rem; margin-top: 2.2rem; } h3 { font-size: 1rem; }
.equal { color: var(--good); } .unequal { color: var(--bad); } .absent { color: var(--faint); }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .85rem;
  width: max-content; overflow-wrap: normal; }
th, td { border-bottom: 1px solid var(--line); padding: .25rem .6rem; text-align: left; vertical-align: top;
  white-space: pre-line; max-width: 24rem; }
th { font-weight: 600; } td { font-variant-numeric: tabular-nums; }
.plots { display: flex; flex-wrap: wrap; gap: 0 2rem; } .plots figure { flex: 1 1 26rem; min-width: 0; }
figure { margin: 1.2rem 0; max-width: 34rem; } figcaption { font-weight: 600; font-size: .95rem; }
.legend { font-size: .85rem; } .legend span { white-space: nowrap; margin-right: 1rem; }
svg { display: block; width: 100%; height: auto; } svg text { fill: var(--ink); font-size: 12px; }
svg .end { text-anchor: end; } svg .middle { text-anchor: middle; } svg .faint { fill: var(--faint); font-size: 11px; }
svg .axis { stroke: var(--line); } svg .reference { stroke: var(--faint); stroke-dasharray: 4 3; }
.s0 { --colour: var(--s0); } .s1 { --colour: var(--s1); } .s2 { --colour: var(--s2); } .s3 { --colour: var(--s3); }
.s4 { --colour: var(--s4); } .s5 { --colour: var(--s5); } .legend b { color: var(--colour); }
svg .mark { fill: var(--colour, var(--s0)); } svg .whisker, svg .line { stroke: var(--colour, var(--s0)); fill: none;
  stroke-width: 2; }
"""


def render_page(title: str, body: Iterable[str], *, mark: str = "") -> str:
    """A whole document under one heading; ``mark`` is the heading's class (``equal``, ``unequal``)."""
    content = "\n".join(body)
    heading = f'<h1 class="{mark}">' if mark else "<h1>"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body>\n{heading}{escape(title)}</h1>\n{content}\n</body></html>\n"
    )


def section(title: str, parts: Iterable[str]) -> str:
    """A heading and what stands under it; plots flow beside each other where there is room."""
    lines, plots = [f"<h2>{escape(title)}</h2>"], list[str]()
    for part in parts:
        if part.startswith("<figure"):
            plots.append(part)
            continue
        lines += _flush(plots)
        lines.append(part)
    return "\n".join(lines + _flush(plots))


def paragraph(text: str, *, absent: bool = False) -> str:
    """Text; ``absent`` for what was not measured."""
    return f'<p class="absent">{escape(text)}</p>' if absent else f"<p>{escape(text)}</p>"


def table_html(table: Table, *, heading: str | None = None) -> str:
    """The table, which scrolls sideways within itself; ``heading`` is the tag of its title, None for no title."""
    lines = [f"<{heading}>{escape(table.title)}</{heading}>"] if heading else []
    lines.append('<div class="scroll"><table>')
    if any(table.header):
        lines.append(_row(table.header, "th"))
    lines += [_row(row, "td") for row in table.rows]
    lines.append("</table></div>")
    return "\n".join(lines)


def _flush(plots: list[str]) -> list[str]:
    lines = ['<div class="plots">', *plots, "</div>"] if plots else []
    plots.clear()
    return lines


def _row(cells: tuple[str, ...], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"
