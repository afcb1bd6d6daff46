"""``fourfold report`` and ``fourfold card``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    folder: Annotated[Path, typer.Argument(help="Output of fourfold study run, fourfold eval, or both below it.")],
    output: Annotated[Path | None, typer.Option(help="Folder of the report; FOLDER/report by default.")] = None,
) -> int:
    """Write results.json, report.md and report.html of everything measured below a folder."""
    from fourfold.cli.console import say
    from fourfold.report import collect, write_report

    measured = collect(folder)
    for path in write_report(measured, output or folder / "report"):
        say(path)
    for line in measured.absent:
        say(f"not measured: {line}")
    return 0


def card(
    folder: Annotated[Path, typer.Argument(help="Output of fourfold study run, fourfold eval, or both below it.")],
    checkpoint: Annotated[str | None, typer.Option(help="Which checkpoint, by name, where there are several.")] = None,
    base_model: Annotated[str | None, typer.Option(help="Hub id of the unquantized model.")] = None,
    license: Annotated[str, typer.Option(help="The base model's, as the hub writes it.")] = "apache-2.0",
    output: Annotated[Path | None, typer.Option(help="The file to write; FOLDER/README.md by default.")] = None,
) -> int:
    """Write a Hugging Face model card filled from measurements, and say which of its rows were not measured."""
    from fourfold.cli.console import say
    from fourfold.plugins import Registry, build_plugin_manager
    from fourfold.report import collect, write_card

    path = output or folder / "README.md"
    measured = collect(folder)
    registry = Registry(build_plugin_manager())
    absent = write_card(
        measured, folder, path, registry, checkpoint=checkpoint, base_model=base_model, license_name=license
    )
    for line in absent:
        say(f"not measured: {line}")
    say(path)
    return 0
