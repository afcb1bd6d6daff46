"""The built-in plugin, registered like any other."""

from __future__ import annotations

from collections.abc import Sequence

from fourfold.hookspecs import hookimpl
from fourfold.plugins import Entry
from fourfold.reference.options import ReferenceUnfuserOptions


@hookimpl
def fourfold_register_unfusers() -> Sequence[Entry]:
    return [
        Entry(
            name="reference",
            summary="per-expert linears that are views of the fused experts; no copy",
            implementation="fourfold.reference.unfuser:ReferenceUnfuser",
            options=ReferenceUnfuserOptions,
        )
    ]
