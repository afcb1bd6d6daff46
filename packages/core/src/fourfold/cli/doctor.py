"""``fourfold doctor``."""

from __future__ import annotations

from typing import Annotated

import typer


def doctor(json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False) -> int:
    """Say what this machine has and what is missing, with the command that mends it."""
    from fourfold.cli.console import print_json, print_table
    from fourfold.doctor import diagnose
    from fourfold.plugins import Registry, build_plugin_manager

    diagnosis = diagnose(Registry(build_plugin_manager()))
    if json:
        print_json(diagnosis)
    else:
        rows = [("ok" if c.ok else "missing", c.subject, c.found, c.mend) for c in diagnosis.checks]
        print_table("doctor", ("", "what", "found", "to mend it"), rows)
    return 0 if diagnosis.ok else 1
