"""From writes and poison to findings."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

import torch

from fourfold.checkpoint.layouts import COMPRESSED_TENSORS, MODELOPT
from fourfold.interfaces.load_check import LoadFinding, LoadRule
from fourfold_vllm.load_check.poison import is_poisoned
from fourfold_vllm.load_check.trace import Write

_EXPERT = re.compile(r"(?P<module>.*\.experts)\.(?P<expert>\d+)\.(?P<projection>gate|up|down)_proj\.(?P<suffix>[^.]+)")
_GLOBAL = (MODELOPT.global_scale, COMPRESSED_TENSORS.global_scale)
_INPUT = (MODELOPT.input_global_scale, COMPRESSED_TENSORS.input_global_scale)
_RELATIVE = 1e-6


def unwritten(tensors: Mapping[str, torch.Tensor], writes: Iterable[Write]) -> Iterator[LoadFinding]:
    """Parts of parameters that no key was written to and that are still poisoned."""
    by_parameter: dict[str, list[Write]] = defaultdict(list)
    for write in writes:
        by_parameter[write.parameter].append(write)
    for name, tensor in tensors.items():
        written = by_parameter[name]
        for start, stop in _gaps(written, tensor.numel() * tensor.element_size()):
            first, last = start // tensor.element_size(), stop // tensor.element_size()
            if bool(is_poisoned(tensor.reshape(-1)[first:last]).all()):
                yield from _missing(name, tensor, written, start, stop)


def _gaps(written: Iterable[Write], size: int) -> Iterator[tuple[int, int]]:
    position = 0
    for write in sorted(written, key=lambda write: write.start):
        if write.start > position:
            yield position, write.start
        position = max(position, write.stop)
    if position < size:
        yield position, size


def _missing(name: str, tensor: torch.Tensor, written: list[Write], start: int, stop: int) -> Iterator[LoadFinding]:
    """Name what is missing by its key where the parameter holds experts, else by what arrived beside it."""
    pattern = next((match for write in written if (match := _EXPERT.fullmatch(write.key))), None)
    num_experts = tensor.shape[0] if tensor.ndim else 1
    if pattern is None:
        arrived = ", ".join(sorted({write.key for write in written})) or "nothing"
        share = f"{stop - start} of {tensor.numel() * tensor.element_size()} bytes"
        message = f"{share} are not written by any key; what arrived: {arrived}"
        yield LoadFinding(rule=LoadRule.UNWRITTEN, tensor=name, message=message)
        return
    per_expert = tensor.numel() * tensor.element_size() // num_experts
    halves = ("down",) if pattern["projection"] == "down" else ("gate", "up")
    part = per_expert // len(halves)
    for index in range(start // part, math.ceil(stop / part)):
        expert, half = divmod(index, len(halves))
        key = f"{pattern['module']}.{expert}.{halves[half]}_proj.{pattern['suffix']}"
        message = f"is missing: its part of {name} is not written by any key"
        yield LoadFinding(rule=LoadRule.UNWRITTEN, tensor=key, message=message)


def ignored(keys: Iterable[str], writes: Iterable[Write]) -> Iterator[LoadFinding]:
    """Keys of the checkpoint that were written nowhere."""
    used = {write.key for write in writes}
    for key in sorted(set(keys) - used):
        message = "vLLM reads it and writes it to no parameter"
        yield LoadFinding(rule=LoadRule.IGNORED, tensor=key, message=message)


def scales(writes: Iterable[Write]) -> Iterator[LoadFinding]:
    """Global and input scales that cannot be used, or that vLLM merges with a neighbour's of another value."""
    groups: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    for write in writes:
        suffix = write.key.rpartition(".")[2]
        if suffix not in _GLOBAL + _INPUT or write.value is None:
            continue
        if not (math.isfinite(write.value) and write.value > 0):
            message = f"is {write.value:g}; a scale must be positive and finite"
            yield LoadFinding(rule=LoadRule.UNUSABLE, tensor=write.key, message=message)
        match = _EXPERT.fullmatch(write.key)
        if match is None:
            groups[write.parameter, ""][write.key] = write.value
        elif match["projection"] != "down":
            groups[write.parameter, match["expert"]][write.key] = write.value
    for (parameter, expert), values in groups.items():
        if len(values) > 1 and not _equal(values.values()):
            yield _merged(parameter, expert, values)


def _equal(values: Iterable[float]) -> bool:
    found = list(values)
    return max(found) - min(found) <= _RELATIVE * max(map(abs, found))


def _merged(parameter: str, expert: str, values: dict[str, float]) -> LoadFinding:
    """What vLLM makes of values that differ: the gate's, or max() of what is stored."""
    key = next(iter(values))
    is_input = key.rpartition(".")[2] in _INPUT
    listed = ", ".join(f"{name.rsplit('.', 2)[-2]} {value:.6g}" for name, value in sorted(values.items()))
    if expert and not is_input:
        rule, how = LoadRule.WEIGHT_SCALE, "vLLM takes the gate's for both"
        key = next(name for name in values if ".up_proj." in name)
    elif expert:
        rule, how = LoadRule.INPUT_SCALE, "vLLM takes the larger input scale for both"
    else:
        rule = LoadRule.INPUT_SCALE if is_input else LoadRule.WEIGHT_SCALE
        how = "vLLM takes max() of the stored values for all"
        if key.endswith(COMPRESSED_TENSORS.suffixes[2:]):
            how += ", which are divisors: the smallest scale"
    return LoadFinding(rule=rule, tensor=key, message=f"scales of one group differ ({listed}); {how} ({parameter})")


def expert_notes(writes: Iterable[Write]) -> Iterator[str]:
    """Input scales that differ between a layer's experts: right as they are, and not the same on every backend."""
    layers: dict[str, list[float]] = defaultdict(list)
    for write in writes:
        match = _EXPERT.fullmatch(write.key)
        if match and match["suffix"] in _INPUT and write.value and math.isfinite(write.value):
            layers[write.parameter].append(abs(write.value))
    ratios = [max(values) / min(values) for values in layers.values()]
    differing = [ratio for ratio in ratios if ratio > 1 + _RELATIVE]
    if differing:
        yield (
            f"input scales differ between the experts of {len(differing)} of {len(ratios)} projections, by up to "
            f"{max(differing):.3g}: FlashInfer and TRT-LLM take a layer's largest for all, CUTLASS and B12X each "
            "expert's own, Marlin none (docs/serving-numerics.md)"
        )
