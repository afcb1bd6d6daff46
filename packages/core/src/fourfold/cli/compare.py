"""``fourfold compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def compare(
    a: Annotated[Path, typer.Argument(help="A checkpoint, an artifact, or an unquantized model.")],
    b: Annotated[Path, typer.Argument(help="Another, of any layout.")],
    level: Annotated[str, typer.Option(help="When they count as equal: bytes, decoded, or tolerance.")] = "decoded",
    tolerance: Annotated[float | None, typer.Option(help="Relative difference that level tolerance allows.")] = None,
    source: Annotated[str | None, typer.Option(help="The unquantized model both came from.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with plots here.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
) -> int:
    """Compare two folders tensor by tensor, every difference with its cause."""
    from fourfold.checkpoint.atomic import require_writable, write_whole
    from fourfold.cli.console import print_json, print_table, progress_bar, say
    from fourfold.compare import DEFAULT_TOLERANCE, Level, render_html, report_tables, verdict
    from fourfold.compare import compare as compare_folders
    from fourfold.errors import UnknownNameError
    from fourfold.models.resolve import resolve_model

    if level not in tuple(Level):
        raise UnknownNameError("level", level, tuple(Level))
    if html is not None:
        require_writable(html)
    with progress_bar(quiet=json) as progress:
        report = compare_folders(
            a,
            b,
            level=Level(level),
            tolerance=DEFAULT_TOLERANCE if tolerance is None else tolerance,
            source=resolve_model(source) if source else None,
            progress=progress,
        )
    if html is not None:
        write_whole(html, render_html(report))
    if json:
        print_json(report)
        return 0 if report.equal else 1
    for table in report_tables(report):
        print_table(table.title, table.header, table.rows)
    say(verdict(report))
    return 0 if report.equal else 1
