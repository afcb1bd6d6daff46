"""Decoding speeds of Gemma 4 26B-A4B, one stream, that others and we have measured; docs/sizing.md has the sources."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from fourfold.hardware import gpu_by_name
from fourfold.models.gemma4 import ModuleKind
from fourfold.sizing import read_shape, tokens_per_second

#: Halfway through the 1000 tokens that such figures are measured over.
CONTEXT = 500


class Row(NamedTuple):
    gpu: str
    recipe: str
    measured: float


#: What the two constants are fitted to.
FITTED = (
    Row("gb10", "BF16", 23.3),
    Row("gb10", "all-linear", 48.2),
    Row("gb10", "experts-only", 29.8),
    Row("rtx-pro-6000-max-q", "BF16", 151.7),
    Row("rtx-pro-6000-max-q", "experts-only", 179.8),
    Row("h200", "BF16", 201.0),
    Row("h200", "all-linear", 207.0),
    Row("h200", "experts-only", 203.0),
)
#: Not in the fit: another GPU, and another run on the first.
HELD_OUT = (Row("rtx-5090", "attention-bf16", 127.0), Row("gb10", "all-linear", 52.0))

CHOSEN: dict[str, Callable[[int, ModuleKind], bool]] = {
    "BF16": lambda layer, kind: False,
    "all-linear": lambda layer, kind: True,
    "experts-only": lambda layer, kind: kind is ModuleKind.EXPERT,
    "attention-bf16": lambda layer, kind: kind is not ModuleKind.ATTENTION,
}


def predict(row: Row, **constants: float) -> float:
    """Tokens a second."""
    bandwidth = gpu_by_name(row.gpu).bandwidth
    return tokens_per_second(
        read_shape("gemma4-26b-a4b"), CHOSEN[row.recipe], bandwidth, context=CONTEXT, kv_bytes=2, **constants
    )
