"""Rows of text under a title: what terminals print, pages show, and Markdown holds."""

from __future__ import annotations

from dataclasses import dataclass

#: What stands in a cell without a value.
NONE = "-"


@dataclass(frozen=True)
class Table:
    """Rows of text under a title; every row is as long as ``header``."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def markdown_table(table: Table) -> str:
    """The table without its title, in GitHub's Markdown."""
    lines = [_line(table.header), _line(("---",) * len(table.header))]
    return "\n".join(lines + [_line(row) for row in table.rows]) + "\n"


def _line(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", "<br>") for cell in cells) + " |"
