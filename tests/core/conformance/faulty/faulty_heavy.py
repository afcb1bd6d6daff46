"""Hooks that import what they should only name."""

from __future__ import annotations

import faulty_parts

from fourfold.hookspecs import hookimpl
from fourfold.plugins import Entry


@hookimpl
def fourfold_register_exporters() -> list[Entry]:
    return [Entry(name="heavy", summary="a test's", implementation=f"{faulty_parts.__name__}:SoundExporter")]
