"""``fourfold setup``."""

from __future__ import annotations

from typing import Annotated

import typer


def setup(
    names: Annotated[
        list[str] | None, typer.Argument(help="Environments to make; by default all that suit this machine.")
    ] = None,
    write_locks: Annotated[
        bool, typer.Option("--write-locks", help="Resolve anew and write locks/*.txt; for maintainers.")
    ] = False,
) -> int:
    """Make the toolchains' environments under .venvs/, from the committed locks."""
    from fourfold.cli.console import progress_bar, say
    from fourfold.environments import make_environment, suited_environments, write_records
    from fourfold.errors import UnknownNameError
    from fourfold.plugins import Registry, build_plugin_manager

    known = {e.name: e for e in Registry(build_plugin_manager()).environments()}
    for name in names or ():
        if name not in known:
            raise UnknownNameError("environment", name, tuple(known))
    if write_locks:
        for path in write_records(tuple(known.values())):
            say(path)
        return 0
    suited, skipped = suited_environments(tuple(known.values()))
    with progress_bar(quiet=False) as progress:
        made = [make_environment(known[name], progress) for name in names or [e.name for e in suited]]
    for folder in made:
        say(f"{folder} is ready")
    for name, reason in {} if names else skipped.items():
        say(f"{name} skipped: {reason}; to make it all the same: uv run fourfold setup {name}")
    return 0
