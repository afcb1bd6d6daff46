"""The comparison: what stands on both sides, tensor by tensor."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fourfold.compare.collect import Collector
from fourfold.compare.judge import (
    SharedScales,
    judge_absent,
    judge_input_scale,
    judge_other,
    judge_quantized,
    judge_shapes,
    judge_unquantized,
)
from fourfold.compare.linears import LinearComparison
from fourfold.compare.report import CompareReport, Level, Part
from fourfold.compare.rules import SourceRules
from fourfold.compare.sides import Side
from fourfold.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from fourfold.progress import Progress

#: The error NVFP4 itself makes on bell-shaped weights is 0.095; two honest roundings of one weight stay within it.
DEFAULT_TOLERANCE = 0.1


def compare(
    a: Path,
    b: Path,
    *,
    level: Level,
    source: Path | None = None,
    tolerance: float = DEFAULT_TOLERANCE,
    progress: Progress,
) -> CompareReport:
    """Compare two folders of any layout: artifacts, checkpoints, unquantized models.

    With ``source``, the unquantized model both came from, errors against it are reported, and every weight is
    traced to the computation that gives its bytes back. Memory is bounded: some rows of one tensor at a time.

    Args:
        a: a folder.
        b: another one, of the same layout or not.
        level: when the two count as equal.
        source: the unquantized model.
        tolerance: relative difference allowed by level ``tolerance``: of a weight in the Frobenius norm, of an input
            scale as it stands.
        progress: told of every tensor.

    Raises:
        CheckpointError: a folder that cannot be read, or a source that is quantized.
        ConfigError: a tolerance that is not positive.
    """
    if not tolerance > 0:
        raise ConfigError(f"tolerance: should be positive (given: {tolerance!r})")
    side_a, side_b = Side(Path(a)), Side(Path(b))
    source_side = None if source is None else Side(Path(source))
    if source_side is not None and source_side.quantized:
        raise CheckpointError(f"{source}: is quantized; source must be the unquantized model that both came from")
    collector = Collector(side_a, side_b, source_side, level, tolerance)
    linears = LinearComparison(side_a, side_b, source_side, collector.distributions)
    rules = None if source_side is None else SourceRules(source_side)
    shared = SharedScales((m, shape) for m, shape in side_a.quantized.items() if m in side_b.quantized)

    modules = dict.fromkeys((*side_a.quantized, *side_a.plain, *side_b.quantized, *side_b.plain))
    others = sorted(side_a.others | side_b.others)
    progress.begin("compare", total=len(modules) + len(others), unit="tensor")
    for module in modules:
        _compare_linear(module, side_a, side_b, linears, rules, shared, collector)
        progress.advance(1)
    for name in others:
        collector.add(judge_other(name, side_a, side_b))
        progress.advance(1)
    return collector.report()


def _compare_linear(
    module: str,
    a: Side,
    b: Side,
    linears: LinearComparison,
    rules: SourceRules | None,
    shared: SharedScales,
    collector: Collector,
) -> None:
    in_a, in_b = (module in side.quantized or module in side.plain for side in (a, b))
    if not (in_a and in_b):
        collector.add(judge_absent(f"{module}.weight", Part.WEIGHT, in_a=in_a))
    elif a.shape(module) != b.shape(module):
        collector.add(judge_shapes(module, a, b))
    elif module in a.quantized and module in b.quantized:
        fitting = rules.candidates(module, a, b) if rules else None
        result = linears.compare(module, fitting)
        difference = judge_quantized(module, a, b, shared, result)
        collector.add(difference, result.sums)
        collector.add_parts(module, result.sums)
        if fitting:
            collector.add_rules(difference, fitting)
        input_scale = judge_input_scale(module, a, b, shared)
        if input_scale is not None:
            collector.add(input_scale)
    else:
        result = linears.compare(module, None)
        collector.add(judge_unquantized(module, a, b, result), result.sums)
