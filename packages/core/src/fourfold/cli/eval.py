"""``fourfold eval``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fourfold.results import EvalRecord


def eval(
    model: Annotated[str, typer.Argument(help="'demo', a checkpoint folder, a hub id, or the address of a server.")],
    tasks: Annotated[str, typer.Option(help="Tasks by name, with commas between them; see fourfold backends.")],
    output: Annotated[Path, typer.Option(help="Folder of the results; the same command goes on in it.")],
    baseline: Annotated[
        str | None, typer.Option(help="BF16 to compare with: a model, an address, or the --output of its evaluation.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="First N prompts of each task.")] = None,
    repeats: Annotated[int, typer.Option(help="Ask everything N times; the baseline's spread is the noise.")] = 1,
    data: Annotated[Path | None, typer.Option(help="Folder of local data files instead of the hub.")] = None,
    option: Annotated[list[str] | None, typer.Option(help="Option of a task, TASK.KEY=VALUE.")] = None,
    concurrency: Annotated[int, typer.Option(help="Requests at a time.")] = 16,
    seed: Annotated[int, typer.Option(help="Seed of sampling and of all statistics.")] = 1234,
    server: Annotated[str | None, typer.Option(help="Server for a checkpoint; this machine's by default.")] = None,
    server_option: Annotated[list[str] | None, typer.Option(help="Option of the server, KEY=VALUE.")] = None,
    served_model_name: Annotated[str | None, typer.Option(help="Model to ask, where several are served.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for one answer.")] = 1800.0,
    json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
) -> int:
    """Evaluate a model on benchmarks, and compare it with a baseline prompt by prompt."""
    from fourfold.cli.console import print_json, progress_bar
    from fourfold.config import parse_pairs
    from fourfold.evaluate.request import EvalConfig
    from fourfold.evaluate.run import evaluate
    from fourfold.plugins import Registry, build_plugin_manager

    config = EvalConfig.parse(
        {
            "model": model, "tasks": tuple(name.strip() for name in tasks.split(",") if name.strip()),
            "output": output, "options": parse_pairs(option or []), "baseline": baseline, "limit": limit,
            "repeats": repeats, "concurrency": concurrency, "data": data, "seed": seed, "server": server,
            "server_options": parse_pairs(server_option or []), "served_model": served_model_name,
            "timeout_s": timeout,
        },
        where="",
    )  # fmt: skip
    registry = Registry(build_plugin_manager())
    with progress_bar(quiet=json) as progress:
        record = evaluate(config, registry, progress)
    if json:
        print_json(record)
    else:
        _print(record, output)
    return 0


def _print(record: EvalRecord, output: Path) -> None:
    from fourfold.cli.console import print_table, say
    from fourfold.evaluate.tables import comparison_rows, score_rows

    header, rows = score_rows(record)
    print_table(record.model.name, header, rows)
    if record.baseline is not None:
        header, rows = comparison_rows(record)
        print_table(f"against {record.baseline.name}", header, rows)
        for comparison in record.comparisons:
            say(comparison.words)
    say(f"results: {output}")
