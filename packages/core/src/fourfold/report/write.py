"""A report on disk: ``results.json``, ``report.md`` and ``report.html`` beside each other."""

from __future__ import annotations

from pathlib import Path

from fourfold.checkpoint.atomic import write_whole
from fourfold.page import Table, markdown_table, paragraph, render_page, section, table_html
from fourfold.report.collect import Measured, canonical
from fourfold.report.sections import Absent, Item, Plot, Section, sections

REPORT_FOLDER = "report"


def write_report(measured: Measured, output: Path) -> tuple[Path, ...]:
    """Write the three files into ``output``, which is made; returns their paths."""
    content = sections(measured)
    files = {
        "results.json": canonical(measured),
        "report.md": _markdown(measured.name, content),
        "report.html": render_page(
            measured.name, (section(part.title, (_html(item) for item in part.items)) for part in content)
        ),
    }
    for name, text in files.items():
        write_whole(output / name, text)
    return tuple(output / name for name in files)


def _markdown(title: str, content: tuple[Section, ...]) -> str:
    lines = [f"# {title}", ""]
    for part in content:
        lines += [f"## {part.title}", ""]
        plots = 0
        for item in part.items:
            if isinstance(item, Plot):
                plots += 1
            elif isinstance(item, Table):
                lines += [f"### {item.title}", "", markdown_table(item)]
            else:
                lines += [f"- {item.text}" if isinstance(item, Absent) else f"{item}\n"]
        if plots:
            lines += [f"{plots} plots of this section are in report.html.", ""]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _html(item: Item) -> str:
    if isinstance(item, Plot):
        return item.svg
    if isinstance(item, Table):
        return table_html(item, heading="h3")
    return paragraph(item.text, absent=True) if isinstance(item, Absent) else paragraph(item)
