"""``fourfold backends``."""

from __future__ import annotations

from typing import Annotated

import typer


def backends(json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False) -> int:
    """List every registered backend, its environment and its options."""
    from fourfold.backends import list_backends
    from fourfold.cli.console import print_json, print_table
    from fourfold.plugins import Registry, build_plugin_manager

    listing = list_backends(Registry(build_plugin_manager()))
    if json:
        print_json(listing)
        return 0
    rows = [(b.role, b.name, b.environment or "-", b.state, b.summary) for b in listing.backends]
    print_table("backends", ("role", "name", "environment", "state", "what it does"), rows)
    return 0
