"""``fourfold study run`` and ``fourfold study validate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fourfold.cli.guard import guarded


def run(
    study: Annotated[Path, typer.Argument(help="A study file.")],
    output: Annotated[Path, typer.Option(help="Folder of the study; empty, absent, or of an earlier run of it.")],
    ray: Annotated[
        str | None, typer.Option(help="Run the jobs on this Ray cluster; HOST:PORT, or auto. Needs a shared folder.")
    ] = None,
    needs: Annotated[
        list[str] | None, typer.Option(help="What a kind of job takes, such as quantize.gpus=8; for --ray.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
) -> int:
    """Run every cell of a study and end with one table; a finished cell or stage is not run again."""
    from fourfold.cli.console import print_json, print_table, progress_bar
    from fourfold.errors import ConfigError
    from fourfold.plugins import Registry, build_plugin_manager
    from fourfold.study import LocalExecutor, load_study, parse_needs, plan_study, run_study, study_tables

    job_needs = parse_needs(needs or ())
    if needs and ray is None:
        raise ConfigError("--needs: says what jobs take of a cluster; give its address by --ray, or leave --needs out")
    registry = Registry(build_plugin_manager())
    plan = plan_study(load_study(study), registry)
    with progress_bar(quiet=json) as progress:
        if ray is None:
            results = run_study(plan, registry, LocalExecutor(registry), output, progress)
        else:
            from fourfold.study.cluster import RayExecutor

            with RayExecutor(ray, output) as cluster:
                results = run_study(plan, registry, cluster, output, progress, needs=job_needs)
    if json:
        print_json(results)
    else:
        for table in study_tables(results):
            print_table(table.title, table.header, table.rows)
    return 0 if results.ok else 1


def validate(studies: Annotated[list[Path], typer.Argument(help="Study files.")]) -> int:
    """Check every name and option of every cell, and what it is asked; reads no model and starts no server."""
    from fourfold.cli.console import say
    from fourfold.errors import ConfigError
    from fourfold.plugins import Registry, build_plugin_manager
    from fourfold.study import check_study, load_study

    registry = Registry(build_plugin_manager())
    wrong = []
    for path in studies:
        try:
            cells = check_study(load_study(path), registry)
        except ConfigError as error:
            wrong.append(str(error))
        else:
            say(f"{path}: {len(cells)} cells")
            for cell in cells:
                say(f"  {cell.name}")
    if wrong:
        raise ConfigError("\n".join(wrong))
    return 0


study = typer.Typer(name="study", help="Many runs as one: planned, run, compared.", no_args_is_help=True)
for command in (run, validate):
    study.command(name=command.__name__)(guarded(command))
