"""Why two stored scales differ, from the scales alone: rounding, sharing, or another amax.

A producer that computes ``amax / 2688`` in float32 and one that computes ``2688 / amax`` in the tensor's 16-bit type
store different numbers for one amax. Such a pair gives its amax away: it is the 16-bit number nearest to
``scale x 2688``, and computing both stored numbers from it proves it. What is stored is the scale or its reciprocal,
as the folder's layout has it, and a reciprocal can cost the last bit: each number is compared as it would be stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import torch

from fourfold.compare.sides import Scale
from fourfold.nvfp4 import encode_scale_from_amax, global_scale_from_amax
from fourfold.nvfp4.constants import GLOBAL_SCALE_DIVISOR


class ScaleCause(Enum):
    """What two unequal scales show; a sharing and a rounding can both apply."""

    RECIPROCAL = "reciprocal"
    ROUNDING = "rounding"
    GROUP = "group"
    AMAX = "amax"


@dataclass(frozen=True)
class ScaleExplanation:
    """Causes and a sentence; no causes for scales that count as equal."""

    causes: tuple[ScaleCause, ...]
    detail: str


def same_amax(a: Scale, b: Scale) -> bool:
    """Whether one amax, rounded as the two kinds of producer do, gives both."""
    return a.agrees_with(b) or _one_amax(a, b) or _one_amax(b, a)


def _one_amax(in_float32: Scale, in_own_type: Scale) -> bool:
    estimate = torch.tensor(in_float32.multiplier * GLOBAL_SCALE_DIVISOR, dtype=torch.float32)
    if not bool(estimate.isfinite()) or estimate <= 0:
        return False
    for amax in _amax_near(estimate):
        try:
            scale = global_scale_from_amax(amax)
        except ValueError:
            continue
        if in_float32.holds_multiplier(scale) and in_own_type.holds_divisor(encode_scale_from_amax(amax)):
            return True
    return False


def _amax_near(estimate: torch.Tensor) -> Iterator[torch.Tensor]:
    """What an amax may have been that is known to the last bits of float32; positive and finite."""
    for dtype in (torch.bfloat16, torch.float16):
        amax = estimate.to(dtype)
        if bool(amax.isfinite()) and amax > 0:
            yield amax
    # The quotient, its reciprocal and the product above round once each: within three units in the last place.
    units = estimate.view(torch.int32)
    for step in range(-3, 4):
        amax = (units + step).view(torch.float32)
        if bool(amax.isfinite()) and amax > 0:
            yield amax


def explain_scales(
    module: str, a: Mapping[str, Scale], b: Mapping[str, Scale], groups: Sequence[tuple[str, Sequence[str]]]
) -> ScaleExplanation:
    """Explain one module's pair of scales.

    ``groups`` are the sets of modules (name for the sentence, members) over which a producer may share one scale.
    """
    mine, other = a[module], b[module]
    if mine.same_as(other):
        return ScaleExplanation((), "")
    ratio = f"A's is {mine.multiplier / other.multiplier:.6g} of B's" if other.multiplier else "B's is zero"
    if mine.agrees_with(other):
        return ScaleExplanation((ScaleCause.RECIPROCAL,), f"{ratio}; the last bit of a reciprocal")
    if same_amax(mine, other):
        return ScaleExplanation((ScaleCause.ROUNDING,), f"{ratio}; one amax gives both")
    for name, members in groups:
        both = [m for m in members if m in a and m in b]
        for label, shared, own in (("A", a, b), ("B", b, a)):
            if len(both) < 2 or not _is_shared(shared, both) or _is_shared(own, both):
                continue
            largest = max((own[m] for m in both), key=lambda scale: scale.multiplier)
            if same_amax(shared[module], largest):
                rounding = () if shared[module].agrees_with(largest) else (ScaleCause.ROUNDING,)
                text = f"{ratio}; {label} shares the largest of the {name}, the other side does not"
                return ScaleExplanation((ScaleCause.GROUP, *rounding), text)
    return ScaleExplanation((ScaleCause.AMAX,), ratio)


def _is_shared(scales: Mapping[str, Scale], members: Sequence[str]) -> bool:
    return len({scales[m].multiplier for m in members}) == 1
