"""The largest input scale a linear can have use for, from the checkpoint's own norms and weights; and FF059.

An input scale s (decode direction, amax / 2688) gives a block with amax b the float8 scale ``b / (6 s)``. What b can
be is known without data wherever an RMS norm stands in front (:mod:`fourfold.models.gemma4_inputs`): ``x = g * n``
with ``sum(n^2) <= H``. With G the largest absolute g of each block, more than half of the blocks can exceed a only
while ``sum(a^2 / G^2)`` over the half with the largest G stays within H. So in every token at least half of the
blocks have an amax of at most ``a = sqrt(H / sum(1 / G^2))``, about 5.7 g, and an s over ``a / (6 x 2^-6)`` puts them
all under float8's normal range, whatever the text. No calibration ends there: the largest value seen is at most
``sqrt(H) g``, and ModelOpt's headroom is rho times a low percentile of block amaxes with rho < 28,672 = 448 / 2^-6,
which by its definition keeps all blocks over that percentile normal. The reciprocal of an ordinary scale is far
beyond: an amax of 5 becomes 1.4e6.

``down`` reads ``gelu(gate) * up``: at most ``|gate row| |up row| g^2 H`` by Cauchy-Schwarz, with row norms from block
scales (16 values of at most 6 steps). That bounds what calibration can have seen; headroom may lie above it, so it is
applied where the scale of gate and up shows that none was given: it lies within the largest value their norm lets
through.

What no bound can judge (a ``down`` beside gate and up with headroom, a model nobody knows) is compared with its peers.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from fourfold.models.gemma4_inputs import gate_and_up, norm_before
from fourfold.nvfp4.constants import BLOCK_SIZE, E2M1_MAX, E4M3_MIN_NORMAL, GLOBAL_SCALE_DIVISOR

if TYPE_CHECKING:
    import torch

    from fourfold.models.gemma4 import LinearModule
    from fourfold.verify.checkpoint import Checkpoint
    from fourfold.verify.shards import StoredTensor

#: ModelOpt's calibrator reads percentiles off a histogram of 6.4 bins an octave, at a bin's middle.
_HISTOGRAM = 2 ** (5 / 64)
#: BF16 rounding of norms, weights and activations on the way to an observer.
_ROUNDING = 1.02
#: A search (MSE) may choose a block scale under amax / 6; twice is more than any block's smallest error takes.
_SEARCHED = 2.0
#: Without any bound: over this median, input scales are divisors: an amax of 10,752 in half of all linears.
_MAX_MEDIAN = 4.0
#: A scale this far over its peers' median, whose reciprocal is nearer to it, is a divisor.
_FAR = 1e3


@dataclass(frozen=True)
class Limit:
    """The largest input scale that is of use, decode direction, and in words where it comes from."""

    scale: float
    why: str


def note_norm(checkpoint: Checkpoint, entry: StoredTensor, value: torch.Tensor) -> None:
    """Keep a whole tensor's ``value`` for :func:`input_limits`, if it is a norm that bounds some linear's input.

    One that is not the model's shape, or not finite, bounds nothing, and is other rules' finding.
    """
    known = checkpoint.model_tensors.get(entry.name)
    if entry.name not in checkpoint.input_norms or known is None or entry.shape != known.shape:
        return
    weight = value.float()
    if weight.numel() % BLOCK_SIZE == 0 and bool(weight.isfinite().all()):
        checkpoint.norms[entry.name] = weight


def input_limits(checkpoint: Checkpoint) -> dict[str, Limit]:
    """Limits by module, for all that have one."""
    limits: dict[str, Limit] = {}
    largest: dict[str, float] = {}
    halves: dict[str, float] = {}
    for name, module in checkpoint.linears.items():
        norm = norm_before(module)
        if norm is not None and norm in checkpoint.norms:
            weight = checkpoint.norms[norm].abs()
            if norm not in halves:
                halves[norm] = _half_block_amax(weight)
            largest[name] = float(weight.max()) * math.sqrt(weight.numel())
            _add_normed(limits, name, halves[norm], norm.rpartition(".")[0].rpartition(".")[2])
        elif module.projection == "o_proj":
            halves.setdefault("", math.sqrt(2 * BLOCK_SIZE))
            _add_normed(limits, name, halves[""], "v_norm")
    for name, module in checkpoint.linears.items():
        if (limit := _product_limit(checkpoint, module, largest)) is not None:
            limits[name] = limit
    return limits


def _add_normed(limits: dict[str, Limit], name: str, amax: float, norm: str) -> None:
    scale = _HISTOGRAM * amax / (E2M1_MAX * E4M3_MIN_NORMAL)
    if math.isfinite(scale) and scale > 0:
        limits[name] = Limit(
            scale, f"after {norm} half of every token's blocks are under {amax:.3g}, lost at this scale"
        )


def _half_block_amax(weight_H: torch.Tensor) -> float:
    """What at least half of a normed token's blocks stay under."""
    largest = weight_H.reshape(-1, BLOCK_SIZE).amax(-1).double().sort(descending=True).values
    half = largest[: math.ceil(largest.numel() / 2)]
    return math.sqrt(weight_H.numel() / float(half.pow(-2).sum()))


def _product_limit(checkpoint: Checkpoint, module: LinearModule, largest: dict[str, float]) -> Limit | None:
    """The limit of a ``down_proj`` whose gate and up were calibrated without headroom."""
    if (pair := gate_and_up(module)) is None:
        return None
    amax = 1.0
    for name in pair:
        scalars = checkpoint.scalars.get(name)
        if scalars is None or name not in largest or scalars.row_norm is None or scalars.input_global_scale is None:
            return None
        if not scalars.input_global_scale * GLOBAL_SCALE_DIVISOR <= _ROUNDING * largest[name]:
            return None
        # sqrt(H) |g| bounds the norm of the input, and with it every row's product.
        amax *= _SEARCHED * scalars.row_norm * largest[name]
    if not math.isfinite(amax) or amax == 0:
        return None
    return Limit(_ROUNDING * amax / GLOBAL_SCALE_DIVISOR, f"gate times up cannot exceed {amax:.3g}")


def reversed_inputs(checkpoint: Checkpoint, scales: dict[str, float], limits: dict[str, Limit]) -> dict[str, str]:
    """Modules whose input scale is a reciprocal, and the reason."""
    middle = median(scales.values()) if scales else 1.0
    peers: dict[str, list[float]] = defaultdict(list)
    for name, scale in scales.items():
        peers[_peers_of(checkpoint, name)].append(scale)
    unbounded = not limits and middle > _MAX_MEDIAN
    medians = {group: median(values) for group, values in peers.items()}
    found: dict[str, str] = {}
    for name, scale in scales.items():
        limit = limits.get(name)
        usual = medians[_peers_of(checkpoint, name)]
        alone = scale > _FAR * usual and abs(math.log(scale * usual)) < abs(math.log(scale / usual))
        if limit is not None and scale > max(1.0, limit.scale) >= 1 / scale:
            found[name] = limit.why
        elif scale > 1 and unbounded:
            found[name] = f"half of all input scales are over {middle:g}"
        elif scale > 1 and alone:
            found[name] = f"its peers have {usual:.3g}"
    return found


def _peers_of(checkpoint: Checkpoint, name: str) -> str:
    """What a module is compared with: the same projection of all layers and experts."""
    module = checkpoint.linears.get(name)
    return f"{module.kind} {module.projection}" if module is not None else ""
