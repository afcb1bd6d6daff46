"""The built-in plugin, registered like any other."""

from __future__ import annotations

from collections.abc import Sequence

from fourfold.hookspecs import hookimpl
from fourfold.plugins import Entry, QuantizerEntry
from fourfold.reference.options import ReferenceQuantizerOptions, ReferenceUnfuserOptions


@hookimpl
def fourfold_register_unfusers() -> Sequence[Entry]:
    """The zero-copy unfuser."""
    return [
        Entry(
            name="reference",
            summary="per-expert linears that are views of the fused experts; no copy",
            implementation="fourfold.reference.unfuser:ReferenceUnfuser",
            options=ReferenceUnfuserOptions,
        )
    ]


@hookimpl
def fourfold_register_quantizers() -> Sequence[QuantizerEntry]:
    """The codec as a quantizer of weights."""
    return [
        QuantizerEntry(
            name="reference",
            summary="the built-in engine: grouped calibration, layers streamed, batched rounding",
            implementation="fourfold.reference.quantizer:ReferenceQuantizer",
            options=ReferenceQuantizerOptions,
            unfusers=("reference",),
        )
    ]
