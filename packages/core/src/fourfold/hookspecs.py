"""The five hooks a plugin may implement, and the two markers. Nothing else, so that importing it costs nothing.

Hooks register, configuration selects by name: each returns the entries a plugin offers, and two entries of one
role under one name are an error. None is ``firstresult``: the order of installation decides nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fourfold.plugins import Entry, QuantizerEntry

PROJECT = "fourfold"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def fourfold_register_unfusers() -> Sequence[Entry]:  # type: ignore[empty-body]
    """Return entries whose implementations are :class:`fourfold.interfaces.unfuser.Unfuser`."""


@hookspec
def fourfold_register_quantizers() -> Sequence[QuantizerEntry]:  # type: ignore[empty-body]
    """Return entries whose implementations are :class:`fourfold.interfaces.quantizer.Quantizer`."""


@hookspec
def fourfold_register_exporters() -> Sequence[Entry]:  # type: ignore[empty-body]
    """Return entries whose implementations are :class:`fourfold.interfaces.exporter.Exporter`."""


@hookspec
def fourfold_register_servers() -> Sequence[Entry]:  # type: ignore[empty-body]
    """Return entries whose implementations are :class:`fourfold.interfaces.server.Server`."""


@hookspec
def fourfold_register_benchmarks() -> Sequence[Entry]:  # type: ignore[empty-body]
    """Return entries whose implementations are :class:`fourfold.interfaces.benchmark.Benchmark`."""
