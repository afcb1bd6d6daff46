"""An evaluation as rows of text for a terminal."""

from __future__ import annotations

from fourfold.results import PROPORTION, Comparison, EvalRecord, Interval, MetricResult, TaskResult

Rows = tuple[tuple[str, ...], list[tuple[str, ...]]]


def score_rows(record: EvalRecord) -> Rows:
    """Every metric of every task."""
    rows: list[tuple[str, ...]] = []
    for task in record.tasks:
        if not task.metrics:
            rows.append((task.task, "reference for others", "", "", f"{task.prompts:,}", ""))
        for metric in task.metrics:
            score = value(metric.score, metric.unit)
            rows.append((task.task, metric.label, score, _interval(metric), f"{metric.n:,}", _notes(task)))
    return ("task", "metric", "score", "95 % interval", "n", ""), rows


def comparison_rows(record: EvalRecord) -> Rows:
    """Every metric beside the baseline's."""
    rows: list[tuple[str, ...]] = [
        (
            comparison.label,
            value(comparison.baseline_score, comparison.unit),
            value(comparison.score, comparison.unit),
            _retained(comparison),
            "" if comparison.test is None else f"{comparison.test.p_value:.4f}",
            str(comparison.verdict),
        )
        for comparison in record.comparisons
    ]
    return ("metric", "baseline", "model", "retained", "p", "verdict"), rows


def value(score: float | None, unit: str) -> str:
    """A score as people read it."""
    if score is None:
        return "none"
    return f"{100 * score:.2f} %" if unit == PROPORTION else f"{score:,.6g} {unit}"


def _interval(metric: MetricResult) -> str:
    interval = metric.interval
    if interval is None:
        return ""
    if metric.unit == PROPORTION:
        return f"{100 * interval.low:.2f} to {100 * interval.high:.2f}"
    return f"{interval.low:.4g} to {interval.high:.4g}"


def _retained(comparison: Comparison) -> str:
    if comparison.retained is None:
        return "" if comparison.ratio is None else f"{comparison.ratio:.3g} times"
    interval: Interval | None = comparison.retained_interval
    ends = f" ({100 * interval.low:.1f} to {100 * interval.high:.1f})" if interval else ""
    return f"{100 * comparison.retained:.1f} %{ends}"


def _notes(task: TaskResult) -> str:
    return f"{task.unfinished:,} answers cut at the token limit" if task.unfinished else ""
