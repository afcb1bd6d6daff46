"""From what was seen to a record: status, causes and one sentence for each tensor."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import torch

from fourfold.compare.amax import ScaleCause, explain_scales
from fourfold.compare.linears import LinearResult, same_bytes
from fourfold.compare.report import Cause, Difference, Part, Status
from fourfold.compare.sides import CHUNK_VALUES, Scale, Side
from fourfold.compare.tally import WeightSums
from fourfold.models.gemma4 import ModuleKind, linear_module

_WEIGHT_CAUSES = {
    ScaleCause.RECIPROCAL: Cause.RECIPROCAL,
    ScaleCause.ROUNDING: Cause.GLOBAL_SCALE_ROUNDING,
    ScaleCause.GROUP: Cause.SCALE_GROUP,
    ScaleCause.AMAX: Cause.AMAX,
}
_INPUT_CAUSES = {
    ScaleCause.RECIPROCAL: Cause.RECIPROCAL,
    ScaleCause.ROUNDING: Cause.INPUT_SCALE_ROUNDING,
    ScaleCause.GROUP: Cause.INPUT_SCALE_GROUP,
    ScaleCause.AMAX: Cause.INPUT_AMAX,
}
_ORDER = {cause: position for position, cause in enumerate(Cause)}


class SharedScales:
    """The sets of modules over which a producer may share a scale: scale groups, and a layer's experts by role."""

    def __init__(self, shapes: Iterable[tuple[str, tuple[int, int]]]) -> None:
        self._groups: dict[str, list[str]] = defaultdict(list)
        self._layer_experts: dict[str, list[str]] = defaultdict(list)
        self._keys: dict[str, tuple[str, str | None]] = {}
        for module, shape in shapes:
            linear = linear_module(module, shape)
            if linear is None:
                continue
            role = None
            if linear.kind is ModuleKind.EXPERT:
                # gate and up see the same input, so one observer may serve both.
                role = f"{linear.layer} {'down' if linear.projection == 'down_proj' else 'gate_up'}"
                self._layer_experts[role].append(module)
            self._groups[linear.scale_group].append(module)
            self._keys[module] = (linear.scale_group, role)

    def of_weights(self, module: str) -> list[tuple[str, Sequence[str]]]:
        """Sets over which a global scale may be shared."""
        if module not in self._keys:
            return []
        return [("scale group", self._groups[self._keys[module][0]])]

    def of_inputs(self, module: str) -> list[tuple[str, Sequence[str]]]:
        """Sets over which an input scale may be shared."""
        sets = self.of_weights(module)
        role = self._keys[module][1] if module in self._keys else None
        if role is not None:
            sets.append(("layer's experts", self._layer_experts[role]))
        return sets


def judge_quantized(module: str, a: Side, b: Side, shared: SharedScales, result: LinearResult) -> Difference:
    """A weight in NVFP4 on both sides."""
    scale_a, scale_b = a.global_scales[module], b.global_scales[module]
    explained = explain_scales(module, a.global_scales, b.global_scales, shared.of_weights(module))
    sums = result.sums
    causes = [_WEIGHT_CAUSES[c] for c in explained.causes]
    causes += sorted(result.causes, key=_ORDER.__getitem__)
    equal = scale_a.same_as(scale_b) and not sums.codes_differing and not sums.block_scales_differing
    return Difference(
        tensor=f"{module}.weight",
        part=Part.WEIGHT,
        status=Status.EQUAL_BYTES if equal else _decoded_status(sums.all_equal),
        causes=tuple(causes),
        detail=_weight_detail(explained.detail, sums, result.causes),
        relative_difference=sums.relative_difference,
        scale_ratio=_ratio(scale_a, scale_b),
        codes_differing=sums.codes_differing,
        block_scales_differing=sums.block_scales_differing,
    )


def _weight_detail(scales: str, sums: WeightSums, causes: Counter[Cause]) -> str:
    parts = [f"global scale: {scales}"] if scales else []
    own_scales = sum(causes[c] for c in (Cause.ZERO_BLOCK, Cause.BLOCK_SCALE_ROUNDING, Cause.BLOCK_SCALE))
    own_codes = sum(causes[c] for c in (Cause.SIGNED_ZERO, Cause.CODE_ROUNDING, Cause.CODE))
    for what, differing, total, own in (
        ("block scales", sums.block_scales_differing, sums.num_block_scales, own_scales),
        ("codes", sums.codes_differing, sums.num_codes, own_codes),
    ):
        if differing:
            parts.append(f"{differing} of {total} {what} differ, {differing - own} of them as the scales make them")
    return "; ".join(parts)


def judge_unquantized(module: str, a: Side, b: Side, result: LinearResult) -> Difference:
    """A linear's weight that is unquantized on one side or both."""
    side = next((label for label, s in (("A", a), ("B", b)) if module in s.quantized), None)
    status = Status.EQUAL_BYTES if result.same_bytes else _decoded_status(result.sums.all_equal)
    causes: tuple[Cause, ...] = ()
    if side is not None:
        causes = (Cause.QUANTIZED_IN_ONE,)
    elif status is not Status.EQUAL_BYTES:
        causes = _value_causes(result.same_dtype, status)
    return Difference(
        tensor=f"{module}.weight",
        part=Part.WEIGHT,
        status=status,
        causes=causes,
        detail=f"NVFP4 in {side} alone" if side else "",
        relative_difference=result.sums.relative_difference,
    )


def judge_input_scale(module: str, a: Side, b: Side, shared: SharedScales) -> Difference | None:
    """The input scale of a module in NVFP4 on both sides; None where neither stores one."""
    scale_a, scale_b = a.input_scales.get(module), b.input_scales.get(module)
    name = f"{module}.input_global_scale"
    if scale_a is None and scale_b is None:
        return None
    if scale_a is None or scale_b is None:
        detail = f"{'B' if scale_a is None else 'A'} alone stores one, and quantizes activations"
        return _differing(name, Part.INPUT_SCALE, Cause.INPUT_SCALE_MISSING, detail)
    explained = explain_scales(module, a.input_scales, b.input_scales, shared.of_inputs(module))
    causes = [_INPUT_CAUSES[c] for c in explained.causes]
    detail = explained.detail
    for label, side in (("A", a), ("B", b)):
        if causes and module in side.fallbacks:
            causes = list(dict.fromkeys([Cause.INPUT_FALLBACK, *causes]))
            detail = f"{detail}; {label}'s is a fallback ({side.fallbacks[module]})"
    ratio = _ratio(scale_a, scale_b)
    return Difference(
        tensor=name,
        part=Part.INPUT_SCALE,
        status=_decoded_status(scale_a.multiplier == scale_b.multiplier) if causes else Status.EQUAL_BYTES,
        causes=tuple(causes),
        detail=detail,
        scale_ratio=ratio,
        relative_difference=abs(ratio - 1) if ratio is not None else None,
    )


def judge_other(name: str, a: Side, b: Side) -> Difference:
    """A tensor that is no linear's weight."""
    if name not in a.others or name not in b.others:
        return judge_absent(name, Part.OTHER, in_a=name in a.others)
    entry_a, entry_b = a.folder.entry(name), b.folder.entry(name)
    if entry_a.shape != entry_b.shape:
        return _differing(name, Part.OTHER, Cause.SHAPE, f"{list(entry_a.shape)} and {list(entry_b.shape)}")
    equal, decoded = True, True
    for part in _row_slices(entry_a.shape):
        x, y = a.folder.read(name, part), b.folder.read(name, part)
        if not same_bytes(x, y):
            equal = False
            decoded = decoded and torch.equal(x.double(), y.double())
    status = Status.EQUAL_BYTES if equal else _decoded_status(decoded)
    same_dtype = entry_a.dtype == entry_b.dtype
    detail = "" if same_dtype else f"{entry_a.dtype} and {entry_b.dtype}"
    causes = () if equal else _value_causes(same_dtype, status)
    return Difference(tensor=name, part=Part.OTHER, status=status, causes=causes, detail=detail)


def judge_absent(name: str, part: Part, *, in_a: bool) -> Difference:
    """A tensor that one side lacks."""
    return _differing(name, part, Cause.ONLY_IN_A if in_a else Cause.ONLY_IN_B, "")


def judge_shapes(module: str, a: Side, b: Side) -> Difference:
    """A linear that has another shape on the other side."""
    detail = f"{list(a.shape(module))} and {list(b.shape(module))}"
    return _differing(f"{module}.weight", Part.WEIGHT, Cause.SHAPE, detail)


def _differing(name: str, part: Part, cause: Cause, detail: str) -> Difference:
    return Difference(tensor=name, part=part, status=Status.DIFFERING, causes=(cause,), detail=detail)


def _decoded_status(equal: bool) -> Status:
    return Status.EQUAL_DECODED if equal else Status.DIFFERING


def _value_causes(same_dtype: bool, status: Status) -> tuple[Cause, ...]:
    """Causes of unquantized values that are not equal to the byte."""
    if status is Status.EQUAL_DECODED:
        return (Cause.SIGNED_ZERO,) if same_dtype else (Cause.DTYPE,)
    return (Cause.VALUE,) if same_dtype else (Cause.DTYPE, Cause.VALUE)


def _ratio(a: Scale, b: Scale) -> float | None:
    return a.multiplier / b.multiplier if b.multiplier else None


def _row_slices(shape: tuple[int, ...]) -> list[tuple[slice, ...] | None]:
    """Slices that together cover a tensor, each of some ``CHUNK_VALUES`` values; None for the whole of a small one."""
    width = 1
    for size in shape[1:]:
        width *= size
    if not shape or shape[0] * width <= CHUNK_VALUES:
        return [None]
    step = max(1, CHUNK_VALUES // width)
    return [(slice(start, min(shape[0], start + step)),) for start in range(0, shape[0], step)]
