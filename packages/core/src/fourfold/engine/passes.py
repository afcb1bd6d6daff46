"""Several passes over the layers, each with its share of the batches, where all hidden states are too many to keep.

Largest values and counts of the passes are put together as those of several processes are, without rounding: the result
is one pass's to the bit. Layers are read once a pass, which for most models is less than hidden states that would go to
disk and back between any two layers: 49 GB a pass for the 26B, beside 47 GB a layer for 4096 x 1024 tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from math import ceil

import torch

from fourfold.engine.calibrate import Batch, ObservedLayer
from fourfold.engine.observations import merged

#: Calibrates on the batches of these numbers.
Pass = Callable[[range], Iterator[ObservedLayer]]


def in_passes(calibrate: Pass, batches: int, at_once: int) -> Iterator[ObservedLayer]:
    """Every layer, in the last pass; ``at_once`` is the largest number of ``batches`` a pass may have."""
    size = ceil(batches / ceil(batches / at_once))
    shares = [range(start, min(start + size, batches)) for start in range(0, batches, size)]
    earlier = [[layer.observations for layer in calibrate(share)] for share in shares[:-1]]
    for layer in calibrate(shares[-1]):
        seen = [found[layer.index] for found in earlier]
        yield replace(layer, observations=merged([*seen, layer.observations]))


def largest_states_bytes(batches: Sequence[Batch], width: int) -> int:
    """Bytes of the hidden states in BF16 of the batch that has most."""
    return max(batch["input_ids"].numel() for batch in batches) * width * torch.bfloat16.itemsize
