"""Rules about scales: block, global, input and KV.

Directions and ranges. Canonical scales multiply on decode: ``global_scale = amax / 2688`` (6 x 448). A model's weights
have an amax of some 0.01 to 100, so global scales lie between 1e-6 and 0.1, and their reciprocals between 10 and 1e6:
a global scale over 1 would mean a weight over 2688. Inputs of linears have an amax of some 0.1 to 10,000 (ModelOpt can
pin it to 2688, a scale of 1, and with headroom, on purpose, sets it thousands of times over what it saw), so the
direction of input scales is told by what the norms and weights in front let through: :mod:`fourfold.verify.inputs`.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import TYPE_CHECKING

from fourfold.nvfp4.constants import FLOAT32_MIN_NORMAL, GLOBAL_SCALE_DIVISOR
from fourfold.verify.checkpoint import PARTS
from fourfold.verify.inputs import input_limits, reversed_inputs
from fourfold.verify.module import NAN_CODE, SIGN_BIT, SMALLEST_NORMAL_CODE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from fourfold.verify.checkpoint import Checkpoint
    from fourfold.verify.inputs import Limit
    from fourfold.verify.module import ModuleView
    from fourfold.verify.rule import Look

#: Share of blocks whose scale may be subnormal, or zero over non-zero codes.
MAX_SUBNORMAL_SHARE = 0.05
#: A tensor with fewer blocks may well have one scale for all.
MIN_BLOCKS_TO_DIFFER = 32
#: Weight amax 2.7e-9 to 2688; input amax 2.7e-6 to 65504 x 4.
GLOBAL_SCALE_RANGE = (1e-12, 1.0)
INPUT_SCALE_RANGE = (1e-9, 98.0)
_NONE: Mapping[str, Limit] = {}


def block_scales_not_nan(look: Look, module: ModuleView) -> None:
    """No block scale is one of float8's two NaN bytes."""
    if (histogram := module.scale_histogram) is None:
        return
    look.count(int(histogram.sum()))
    if number := int(histogram[NAN_CODE]) + int(histogram[NAN_CODE | SIGN_BIT]):
        name = module.parts[PARTS[1]].name
        look.wrong(
            name, found=f"{number} NaN block scales", expected="finite block scales",
            message=f"{name} holds {number} NaN; every output of {module.name} becomes NaN",
        )  # fmt: skip


def block_scales_not_negative(look: Look, module: ModuleView) -> None:
    """No block scale has its sign bit set."""
    if (histogram := module.scale_histogram) is None:
        return
    look.count(int(histogram.sum()))
    if number := int(histogram[SIGN_BIT : SIGN_BIT | NAN_CODE].sum()):
        name = module.parts[PARTS[1]].name
        look.wrong(
            name, found=f"{number} negative block scales", expected="positive block scales",
            message=f"{name} holds {number} negative block scales; kernels that take them as unsigned read garbage",
        )  # fmt: skip


def block_scales_not_zero(look: Look, module: ModuleView) -> None:
    """The block scales of a tensor are not all zero."""
    if (histogram := module.scale_histogram) is None:
        return
    look.count()
    if int(histogram[0]) + int(histogram[SIGN_BIT]) == int(histogram.sum()):
        name = module.parts[PARTS[1]].name
        look.wrong(
            name, found="all block scales zero", expected="non-zero block scales",
            message=f"{name} is all zero, so {module.name} decodes to zero",
        )  # fmt: skip


def block_scales_vary(look: Look, module: ModuleView) -> None:
    """The block scales of a tensor are not one value throughout."""
    histogram = module.scale_histogram
    if histogram is None or int(histogram.sum()) < MIN_BLOCKS_TO_DIFFER:
        return
    look.count()
    value = int(histogram.argmax())
    if int(histogram[value]) == int(histogram.sum()) and value not in (0, SIGN_BIT, NAN_CODE, NAN_CODE | SIGN_BIT):
        name = module.parts[PARTS[1]].name
        look.wrong(
            name, found=f"byte {value:#04x} in every block", expected="a scale of its own for each block",
            message=f"{name} is constant: block scales were never computed, or were overwritten",
        )  # fmt: skip


def block_scales_normal(look: Look, module: ModuleView) -> None:
    """Few block scales are subnormal, or zero over non-zero codes: there float8 has 1 or 2 digits, or none."""
    from fourfold.nvfp4.tensor import zero_over_codes

    histogram = module.scale_histogram
    if histogram is None:
        return
    look.count(int(histogram.sum()))
    zero, subnormal = int(histogram[0]), int(histogram[1:SMALLEST_NORMAL_CODE].sum())
    total = int(histogram.sum())
    if zero and zero < total and module.well_formed:
        zero = int(zero_over_codes(module.values[PARTS[0]], module.values[PARTS[1]]).sum())
    share = (subnormal + zero) / total
    if zero < total and share > MAX_SUBNORMAL_SHARE:
        name = module.parts[PARTS[1]].name
        look.wrong(
            name, found=f"{100 * share:.1f} % of block scales", expected=f"at most {100 * MAX_SUBNORMAL_SHARE:g} %",
            message=f"{name}: {subnormal} subnormal block scales and {zero} zero ones over non-zero codes; "
            "the global scale is too large for this tensor",
        )  # fmt: skip


def global_scales_usable(look: Look, module: ModuleView) -> None:
    """The global scale is finite and over zero."""
    _usable(look, module, PARTS[2])


def input_scales_usable(look: Look, module: ModuleView) -> None:
    """The input scale is finite and over zero."""
    _usable(look, module, PARTS[3])


def _usable(look: Look, module: ModuleView, part: str) -> None:
    if (scale := module.scalar(part)) is None:
        return
    look.count()
    entry = module.parts[part]
    if entry.dtype != "F32" or entry.numel != 1:
        return  # dtype and shape are rules of their own
    stored = float(module.values[part])
    if not (math.isfinite(scale) and math.isfinite(stored) and scale > 0 and stored > 0):
        look.wrong(
            entry.name, found=stored, expected="finite and over zero",
            message=f"{entry.name} is {stored:g}; {module.name} computes zeros, infinities or NaN with it",
        )  # fmt: skip


def scales_not_denormal(look: Look, module: ModuleView) -> None:
    """Global and input scales are normal float32 numbers, as stored and as reciprocals."""
    for part in PARTS[2:]:
        entry = module.parts.get(part)
        if entry is None or entry.dtype != "F32" or entry.numel != 1:
            continue
        look.count()
        stored = abs(float(module.values[part]))
        if 0 < stored < FLOAT32_MIN_NORMAL or (math.isfinite(stored) and stored > 1 / FLOAT32_MIN_NORMAL):
            look.wrong(
                entry.name, found=f"{stored:g}", expected=f"at least {FLOAT32_MIN_NORMAL:g} and its reciprocal too",
                message=f"{entry.name} is denormal (or its reciprocal is): GPUs flush it to zero; "
                "it looks like memory that was never written",
            )  # fmt: skip


def global_scale_direction(look: Look, checkpoint: Checkpoint) -> None:
    """Weight global scales are stored in their layout's direction, not as reciprocals."""
    low, high = GLOBAL_SCALE_RANGE
    for module, scale in _usable_scalars(checkpoint, PARTS[2]):
        look.count()
        if scale > high and low <= 1 / scale <= high:
            _reciprocal(look, checkpoint, module, PARTS[2], scale, "weights")


def input_scale_direction(look: Look, checkpoint: Checkpoint) -> None:
    """Input scales are stored in their layout's direction, not as reciprocals."""
    scales = dict(_usable_scalars(checkpoint, PARTS[3]))
    look.count(len(scales))
    for module, why in reversed_inputs(checkpoint, scales, input_limits(checkpoint)).items():
        _reciprocal(look, checkpoint, module, PARTS[3], scales[module], "activations", why)


def _reciprocal(
    look: Look, checkpoint: Checkpoint, module: str, part: str, scale: float, what: str, why: str = ""
) -> None:
    name = checkpoint.modules[module][part].name
    layout = checkpoint.layout
    kind = "a divisor (over 1)" if layout is not None and layout.reciprocal else "a multiplier (under 1)"
    look.wrong(
        name, found=f"{scale:g} in decode direction: {what} up to {scale * GLOBAL_SCALE_DIVISOR:g}",
        expected=f"about {1 / scale:g}",
        message=f"{name} is the reciprocal of what its layout stores, {kind}; {module} is off by {scale * scale:.3g}"
        f"{f' ({why})' if why else ''}",
    )  # fmt: skip


def global_scales_plausible(look: Look, checkpoint: Checkpoint) -> None:
    """Weight global scales lie where some weight's amax can lie."""
    _plausible(look, checkpoint, PARTS[2], GLOBAL_SCALE_RANGE)


def input_scales_plausible(look: Look, checkpoint: Checkpoint) -> None:
    """Input scales lie where some activation's amax can lie, or, with headroom, where the norm before lets them."""
    _plausible(look, checkpoint, PARTS[3], INPUT_SCALE_RANGE, input_limits(checkpoint))


def _plausible(
    look: Look, checkpoint: Checkpoint, part: str, bounds: tuple[float, float], limits: Mapping[str, Limit] = _NONE
) -> None:
    low = bounds[0]
    for module, scale in _usable_scalars(checkpoint, part):
        look.count()
        high = max(bounds[1], limits[module].scale) if module in limits else bounds[1]
        is_reciprocal = scale > high and low <= 1 / scale <= high
        if not low <= scale <= high and not (is_reciprocal and part == PARTS[2]):
            name = checkpoint.modules[module][part].name
            look.wrong(
                name, found=f"{scale:g} in decode direction (amax {scale * GLOBAL_SCALE_DIVISOR:g})",
                expected=f"{low:g} to {high:g}",
                message=f"{name} cannot be a scale of this model: {scale:g} means an amax of "
                f"{scale * GLOBAL_SCALE_DIVISOR:g}",
            )  # fmt: skip


def groups_share_global_scale(look: Look, checkpoint: Checkpoint) -> None:
    """What a server fuses has one global scale."""
    _shared(look, checkpoint, PARTS[2], "it uses one for all of them and the others are off by the ratio")


def groups_share_input_scale(look: Look, checkpoint: Checkpoint) -> None:
    """What a server fuses has one input scale."""
    _shared(look, checkpoint, PARTS[3], "they have one input, and it takes the largest or smallest of the scales")


def _shared(look: Look, checkpoint: Checkpoint, part: str, consequence: str) -> None:
    groups: dict[str, dict[str, float]] = defaultdict(dict)
    for module, scale in _usable_scalars(checkpoint, part):
        linear = checkpoint.linears.get(module)
        if linear is not None:
            groups[linear.scale_group][module] = scale
    for group, scales in groups.items():
        if len(scales) < 2:
            continue
        look.count()
        low, high = min(scales.values()), max(scales.values())
        if low != high:
            values = ", ".join(f"{name.rpartition('.')[2]} {value:.9g}" for name, value in scales.items())
            look.wrong(
                group, found=values, expected="one value",
                message=f"{group}: {part} differs by a factor {high / low:.4g}; a server fuses these: {consequence}",
            )  # fmt: skip


def kv_scales_usable(look: Look, checkpoint: Checkpoint) -> None:
    """KV-cache scales are one number each, finite, over zero, and not denormal."""
    for name, entry in checkpoint.kv_names.items():
        look.count()
        scale = checkpoint.kv_scales.get(name)
        if scale is None:
            found = f"{entry.dtype} {list(entry.shape)}"
            look.wrong(
                name, found=found, expected="one number in F32, BF16 or F16",
                message=f"{name} is {found}; servers read one number for a layer's keys, and one for its values",
            )  # fmt: skip
        elif not (math.isfinite(scale) and scale >= FLOAT32_MIN_NORMAL):
            look.wrong(
                name, found=scale, expected="finite and over zero",
                message=f"{name} is {scale:g}; attention computes NaN or zero with it",
            )  # fmt: skip


def _usable_scalars(checkpoint: Checkpoint, part: str) -> Iterator[tuple[str, float]]:
    """Module and decode-direction scale, for all that are finite and normal; the rest are other rules' findings."""
    for module, scalars in checkpoint.scalars.items():
        scale: float | None = getattr(scalars, part)
        if scale is not None and math.isfinite(scale) and FLOAT32_MIN_NORMAL <= scale <= 1 / FLOAT32_MIN_NORMAL:
            yield module, scale
