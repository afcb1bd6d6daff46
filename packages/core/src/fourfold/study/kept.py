"""What each cell of a study kept of the unquantized model: a row a cell, a column a score."""

from __future__ import annotations

from collections.abc import Iterator

from fourfold.errors import last_line
from fourfold.page import NONE, Table
from fourfold.results import Comparison, EvalRecord, Interval, MetricResult
from fourfold.study.results import EvaluationResult, StudyResults

#: Parts that a benchmark splits its score into stay in the records, as do sizes and all of a divergence but its mean.
_PART = "part-"
_DIVERGENCE = "kl"
_MILLI = 1e3
Key = tuple[str, str]


def kept_table(results: StudyResults) -> Table:
    """Scores with what is kept of the baseline's and the paired test's verdict, and divergences, intervals in brackets.

    ``results`` have evaluations.
    """
    columns = _columns(results) or {("", ""): "outcome"}  # where every evaluation failed
    rows = tuple((result.name, *_row(result, columns)) for result in results.evaluations)
    return Table("kept of the unquantized model", ("cell", *columns.values()), rows)


def _columns(results: StudyResults) -> dict[Key, str]:
    """Heading by task and metric, in the order of the first evaluation that has it; divergences last."""
    scores: dict[Key, str] = {}
    divergences: dict[Key, str] = {}
    for record in _records(results):
        for task in record.tasks:
            for metric in task.metrics:
                key = (task.task, metric.name)
                if metric.name == _DIVERGENCE:
                    divergences[key] = f"{metric.label}, 10^-3 nats, n = {metric.prompts:,}"
                elif _is_score(key, metric):
                    scores.setdefault(key, f"{metric.label}, n = {metric.prompts:,}")
    return scores | divergences


def _is_score(key: Key, metric: MetricResult) -> bool:
    return metric.unit == "proportion" and not metric.name.startswith(_PART) and key[0] != _DIVERGENCE


def _records(results: StudyResults) -> Iterator[EvalRecord]:
    return (result.record for result in results.evaluations if result.record is not None)


def _row(result: EvaluationResult, columns: dict[Key, str]) -> list[str]:
    if result.record is None:
        return [f"failed: {result.error_type}: {last_line(result.error)}", *[NONE] * (len(columns) - 1)]
    metrics = {(task.task, metric.name): metric for task in result.record.tasks for metric in task.metrics}
    compared = {(found.task, found.metric): found for found in result.record.comparisons}
    return [_cell(metrics.get(key), compared.get(key)) for key in columns]


def _cell(metric: MetricResult | None, compared: Comparison | None) -> str:
    if metric is None or metric.score is None:
        return NONE
    if metric.name == _DIVERGENCE:
        return f"{_MILLI * metric.score:.2f}{_interval(metric.interval, _MILLI, 2)}"
    score = f"{100 * metric.score:.1f} %"
    if compared is None or compared.retained is None:
        return score
    kept = f"{100 * compared.retained:.1f} %{_interval(compared.retained_interval, 100, 1)}"
    return f"{score}; kept {kept}: {compared.verdict}"


def _interval(interval: Interval | None, factor: float, digits: int) -> str:
    if interval is None:
        return ""
    return f" ({factor * interval.low:.{digits}f} to {factor * interval.high:.{digits}f})"
