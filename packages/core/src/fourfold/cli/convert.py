"""``fourfold convert``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def convert(
    checkpoint: Annotated[Path, typer.Argument(help="Folder of an NVFP4 checkpoint.")],
    layout: Annotated[str, typer.Option(help="modelopt or compressed-tensors.")],
    output: Annotated[Path, typer.Option(help="Folder to write; must be empty or absent.")],
    json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
) -> int:
    """Write a checkpoint under another layout, without loading the model."""
    from fourfold.checkpoint.atomic import is_current
    from fourfold.cli.console import print_json, progress_bar, say
    from fourfold.cli.options import MADE_ANEW
    from fourfold.convert import convert_checkpoint
    from fourfold.plugins import Registry, build_plugin_manager

    was_here = is_current(output)
    registry = Registry(build_plugin_manager())
    with progress_bar(quiet=json) as progress:
        report = convert_checkpoint(checkpoint, layout, output, registry, progress)
    if json:
        print_json(report)
        return 0
    say(f"{output}: {report.num_modules:,} modules from {report.source_layout} to {report.target_layout}")
    if report.inexact:
        say(f"{len(report.inexact)} of {report.num_scales:,} scales have no exact reciprocal; the way back is off by")
        say(f"one float32 step there; the first is {report.inexact[0].tensor}; --json lists all")
    for name in report.files_left_behind:
        say(f"left behind: {name}")
    if was_here:
        say(MADE_ANEW)
    return 0
