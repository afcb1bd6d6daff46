"""``fourfold plan``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def plan(
    model: Annotated[str, typer.Argument(help="'gemma4-26b-a4b', 'demo', a folder, its config.json, or a hub id.")],
    gpu: Annotated[str | None, typer.Option(help="A GPU by name: gb10, rtx-5090, h200, ...")] = None,
    fit: Annotated[str | None, typer.Option(help="Size the checkpoint must fit, such as 17GB or 16GiB.")] = None,
    sensitivity: Annotated[
        Path | None, typer.Option(help="Report of fourfold sensitivity, for the mix with the least error.")
    ] = None,
    kv_cache: Annotated[str, typer.Option(help="none (BF16) or fp8.")] = "none",
    context: Annotated[int, typer.Option(help="Tokens of a sequence.")] = 1024,
    memory_share: Annotated[float, typer.Option(help="Part of the GPU's memory the server may use.")] = 0.9,
    reserve: Annotated[str, typer.Option(help="What of that is neither weights nor cache.")] = "2GB",
    json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
) -> int:
    """Predict bytes, tokens and speed of every recipe on a GPU, and find the best mix for a size."""
    from fourfold.cli.console import print_json, print_table, say
    from fourfold.sizing import PlanConfig, make_plan, parse_size, plan_notes, plan_tables

    config = PlanConfig.parse(
        {
            "model": model,
            "gpu": gpu,
            "fit": None if fit is None else parse_size(fit),
            "sensitivity": None if sensitivity is None else str(sensitivity),
            "kv_cache": kv_cache,
            "context": context,
            "memory_share": memory_share,
            "reserve": parse_size(reserve),
        },
        where="",
    )
    report = make_plan(config)
    if json:
        print_json(report)
        return 0
    for table in plan_tables(report):
        print_table(table.title, table.header, table.rows)
    for note in plan_notes(report):
        say(note)
    return 0
