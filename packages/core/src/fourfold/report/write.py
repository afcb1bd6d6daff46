"""A report on disk: ``results.json``, ``report.md`` and ``report.html`` beside each other."""

from __future__ import annotations

from pathlib import Path

from fourfold.checkpoint.atomic import write_whole
from fourfold.errors import OutputError
from fourfold.page import Table, markdown_table, paragraph, render_page, section, table_html
from fourfold.report.collect import REPORT_PAGE, Measured, canonical, records_in
from fourfold.report.sections import Absent, Item, Plot, Section, sections
from fourfold.study.results import RESULTS_FILE


def write_report(measured: Measured, output: Path) -> tuple[Path, ...]:
    """Write the three files into ``output``, which is made; returns their paths.

    Raises :class:`OutputError` for a folder of records, whose own ``results.json`` the report's would replace, and
    which no later report would read, since it reads none that stand beside a ``report.html``.
    """
    if records := records_in(output):
        raise OutputError(f"{output}: holds {records[0].name}, which is no report's; give --output another folder")
    content = sections(measured)
    files = {
        RESULTS_FILE: canonical(measured),
        "report.md": _markdown(measured.name, content),
        REPORT_PAGE: render_page(
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
            lines += [f"{'A plot' if plots == 1 else f'{plots} plots'} of this section: report.html.", ""]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _html(item: Item) -> str:
    if isinstance(item, Plot):
        return item.svg
    if isinstance(item, Table):
        return table_html(item, heading="h3")
    return paragraph(item.text, absent=True) if isinstance(item, Absent) else paragraph(item)
