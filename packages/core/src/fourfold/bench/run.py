"""One benchmark: the baseline first, then the model, each served once and put under the same loads.

Every round has a seed of its own, so that no prompt is met twice and prefix caching cannot flatter it.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from pydantic import FiniteFloat

from fourfold.bench.spec import BenchSpec, Figure, figures, fit
from fourfold.config import Config
from fourfold.evaluate.target import folder_bytes, server_version, this_machine
from fourfold.interfaces.server import Endpoint, LoadResult, ServePlan
from fourfold.progress import Progress
from fourfold.results import Machine
from fourfold.serving.memory import MemoryUse, group_memory
from fourfold.serving.target import Target, context_tokens
from fourfold.versions import ASKING, package_versions


class Spread(Config):
    """One figure: the median of ``runs``, and the least and the most of them."""

    label: str
    unit: str
    larger_is_better: bool
    median: FiniteFloat
    least: FiniteFloat
    most: FiniteFloat
    runs: tuple[FiniteFloat, ...]


class BenchSide(Config):
    """One served model. ``command`` is what we would have served it with; None where somebody else runs it."""

    given: str
    model: str
    command: ServePlan | None
    server_version: str | None
    size_bytes: int | None
    memory: MemoryUse | None
    figures: tuple[Spread, ...]


class BenchReport(Config):
    """What ``fourfold bench --json`` prints; figures of both sides stand in the same order."""

    machine: Machine
    packages: dict[str, str]
    spec: BenchSpec
    cuts: tuple[str, ...]
    baseline: BenchSide | None
    subject: BenchSide


def bench(subject: Target, baseline: Target | None, spec: BenchSpec, progress: Progress) -> BenchReport:
    """Measure one model, or two on equal terms: both with the lengths that the shorter context holds."""
    cuts: tuple[str, ...] = ()
    for target in (subject, baseline):
        if target is not None:
            spec, more = fit(spec, _context(target))
            cuts += more
    machine = this_machine()  # before minutes are spent on figures: a driver may refuse to say what it has
    first = _measure(baseline, spec, progress) if baseline else None
    second = _measure(subject, spec, progress)
    return BenchReport(
        machine=machine, packages=package_versions(ASKING), spec=spec, cuts=cuts, baseline=first, subject=second
    )


def _context(target: Target) -> int | None:
    """As the endpoint states it, or the plan of the server that will be started."""
    if target.endpoint is not None:
        return context_tokens(target.endpoint)
    return target.server.plan(target.checkpoint).context_tokens if target.checkpoint else None


def _measure(target: Target, spec: BenchSpec, progress: Progress) -> BenchSide:
    with target.open(progress) as endpoint:
        lines = figures(spec)
        rounds = spec.warmups + spec.repeats
        loads = [
            line.load.model_copy(update={"seed": 1000 * number + position})
            for number in range(rounds)
            for position, line in enumerate(lines)
        ]
        results = target.server.measure(endpoint, loads, progress)
        counted = results[spec.warmups * len(lines) :]
        spreads = tuple(_spread(line, counted[index :: len(lines)]) for index, line in enumerate(lines))
        return _side(target, endpoint, spreads)


def _spread(figure: Figure, results: Sequence[LoadResult]) -> Spread:
    scale = 1000.0 if figure.unit == "ms" else 1.0
    runs = tuple(scale * float(getattr(result, figure.metric)) for result in results)
    return Spread(
        label=figure.label,
        unit=figure.unit,
        larger_is_better=figure.larger_is_better,
        median=statistics.median(runs),
        least=min(runs),
        most=max(runs),
        runs=runs,
    )


def _side(target: Target, endpoint: Endpoint, spreads: tuple[Spread, ...]) -> BenchSide:
    folder = target.checkpoint
    return BenchSide(
        given=target.given,
        model=endpoint.model,
        command=target.server.plan(folder) if folder else None,
        server_version=server_version(endpoint),
        size_bytes=folder_bytes(folder) if folder else None,
        memory=group_memory(endpoint.pid) if endpoint.pid else None,
        figures=spreads,
    )
