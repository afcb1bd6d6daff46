"""Bytes: of a checkpoint under a choice of quantized linears, and of keys and values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fourfold.models.gemma4 import ModuleKind
from fourfold.plan import BYTES_PER_WEIGHT
from fourfold.sizing.shapes import ModelShape

BF16_BYTES = 2
#: Global scale and input scale, float32 each.
SCALE_BYTES = 8

#: Whether one layer's linears of one role are in NVFP4.
Choose = Callable[[int, ModuleKind], bool]


def checkpoint_bytes(shape: ModelShape, chosen: Choose) -> int:
    """Tensor bytes on disk, which is what a server holds too.

    The files' headers are not counted: about 130 bytes a tensor, 0.04 % of the 26B and a seventh of the demo.
    """
    total = BF16_BYTES * shape.num_parameters
    for layer in shape.layers:
        for kind in ModuleKind:
            if chosen(layer.index, kind):
                total -= unit_saving(layer.numel(kind), layer.copies(kind))
    return total


def unit_saving(numel: int, copies: int) -> int:
    """Bytes saved by putting ``copies`` linears of ``numel`` weights together into NVFP4."""
    return int(numel * (BF16_BYTES - BYTES_PER_WEIGHT)) - SCALE_BYTES * copies


@dataclass(frozen=True)
class KVCost:
    """Bytes of keys and values: every token's in full layers, the last ``window`` tokens' in sliding ones."""

    full_bytes_per_token: int
    sliding_bytes_per_token: int
    window: int

    def bytes(self, tokens: int) -> int:
        """Of one sequence of ``tokens``."""
        return self.full_bytes_per_token * tokens + self.sliding_bytes_per_token * min(tokens, self.window)

    def tokens_in(self, room: int) -> int:
        """The longest one sequence whose keys and values take at most ``room`` bytes."""
        first = self.full_bytes_per_token + self.sliding_bytes_per_token
        if room < first * self.window:
            return max(0, room // first)
        return (room - self.sliding_bytes_per_token * self.window) // self.full_bytes_per_token


def kv_cost(shape: ModelShape, bytes_per_value: int) -> KVCost:
    """Keys and values of every layer; ``bytes_per_value`` is 2 for BF16, 1 for FP8."""
    full = sum(layer.key_width for layer in shape.layers if layer.window is None)
    sliding = sum(layer.key_width for layer in shape.layers if layer.window is not None)
    window = max((layer.window for layer in shape.layers if layer.window is not None), default=0)
    return KVCost(2 * full * bytes_per_value, 2 * sliding * bytes_per_value, window)
