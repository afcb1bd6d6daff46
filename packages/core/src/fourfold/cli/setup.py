"""``fourfold setup``."""

from __future__ import annotations

from typing import Annotated

import typer


def setup(
    names: Annotated[list[str] | None, typer.Argument(help="Environments to make; all by default.")] = None,
    write_locks: Annotated[
        bool, typer.Option("--write-locks", help="Resolve anew and write locks/*.txt; for maintainers.")
    ] = False,
) -> int:
    """Make the toolchains' environments under .venvs/, from the committed locks."""
    from fourfold.cli.console import progress_bar
    from fourfold.environments import make_environment, write_records
    from fourfold.errors import UnknownNameError
    from fourfold.plugins import Registry, build_plugin_manager

    known = {e.name: e for e in Registry(build_plugin_manager()).environments()}
    for name in names or ():
        if name not in known:
            raise UnknownNameError("environment", name, tuple(known))
    if write_locks:
        for path in write_records(tuple(known.values())):
            print(path)
        return 0
    with progress_bar(quiet=False) as progress:
        made = [make_environment(known[name], progress) for name in names or known]
    for folder in made:
        print(f"{folder} is ready")
    return 0
