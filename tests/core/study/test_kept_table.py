"""What a study says was kept: a row a cell, read by people, so the whole text is tested."""

from __future__ import annotations

import pytest

from core.report.measured import MACHINE
from fourfold.results import (
    Comparison,
    Direction,
    EvalRecord,
    Interval,
    MetricResult,
    ModelRecord,
    TaskResult,
    Verdict,
)
from fourfold.study import study_tables
from fourfold.study.results import EvaluationResult

from .conftest import read


def metric(name: str, score: float, unit: str = "proportion", label: str = "", interval=None) -> MetricResult:
    direction = Direction.HIGHER if unit == "proportion" else Direction.LOWER
    return MetricResult(
        name=name, label=label or name, direction=direction, unit=unit, n=1000, prompts=1000, score=score,
        interval=interval and Interval(low=interval[0], high=interval[1], method="bootstrap", seed=0, resamples=10),
    )  # fmt: skip


def task(name: str, *metrics: MetricResult) -> TaskResult:
    return TaskResult(
        task=name, label=name, benchmark=name, prompts=1000, scored=1000, prompts_sha256="b" * 64, seconds=5.0,
        metrics=metrics,
    )  # fmt: skip


def evaluated(name: str, tasks: tuple[TaskResult, ...], comparisons: tuple[Comparison, ...] = ()) -> EvaluationResult:
    record = EvalRecord(
        model=ModelRecord(name=name, source=name, kind="checkpoint"), machine=MACHINE, packages={}, seed=0,
        started="2026-01-01T00:00:00Z", seconds=9.0, concurrency=4, tasks=tasks, comparisons=comparisons,
    )  # fmt: skip
    return EvaluationResult(name=name, status="done", identity="i", folder=name, record=record)


BASELINE = evaluated(
    "baseline", (task("math", metric("correct", 0.8, label="math"), metric("part-sums", 0.9)), task("kl"))
)
CELL = evaluated(
    "cell",
    (
        task("math", metric("correct", 0.76, label="math"), metric("part-sums", 0.9)),
        task("kl", metric("kl", 0.002627, "nats", "KL", (0.0023, 0.00297)), metric("top1", 0.88)),
        task("size", metric("disk", 8e6, "bytes")),
    ),
    (
        Comparison(
            task="math", metric="correct", label="math", direction=Direction.HIGHER, unit="proportion", prompts=1000,
            baseline_score=0.8, score=0.76, difference=-0.04, ratio=0.95, retained=0.95, words="",
            retained_interval=Interval(low=0.93, high=0.97, method="bonett-price"), verdict=Verdict.WORSE,
        ),
    ),
)  # fmt: skip
FAILED = EvaluationResult(
    name="other", status="failed", identity=None, folder="o", error_type="StageError", error="the log:\nno memory"
)


@pytest.mark.parametrize(
    ("evaluations", "header", "rows"),
    [
        (
            (BASELINE, CELL, FAILED),
            ("cell", "math, n = 1,000", "KL, 10^-3 nats, n = 1,000"),
            (
                ("baseline", "80.0 %", "-"),
                ("cell", "76.0 %; kept 95.0 % (93.0 to 97.0): worse", "2.63 (2.30 to 2.97)"),
                ("other", "failed: StageError: no memory", "-"),
            ),
        ),
        ((FAILED,), ("cell", "outcome"), (("other", "failed: StageError: no memory"),)),
    ],
    ids=["a study", "nothing but failures"],
)
def test_a_row_a_cell(finished, evaluations, header, rows):
    table = study_tables(read(finished).model_copy(update={"evaluations": evaluations}))[-1]
    assert (table.title, table.header, table.rows) == ("kept of the unquantized model", header, rows)
