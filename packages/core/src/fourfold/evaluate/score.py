"""From scored answers to a task's record."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from fourfold.errors import EvaluationError
from fourfold.evaluate.answers import AnswerFile, prompts_sha256
from fourfold.evaluate.statistics import Sample, score_interval, standard_error
from fourfold.evaluate.tasks import PlannedTask
from fourfold.interfaces.benchmark import Metric, Prompt, Scores
from fourfold.results import PROPORTION, MetricResult, PromptMetric, TaskResult

#: A toolchain adds the same numbers in another order: this much may lie between its score and ours.
_SAME = 1e-9

PromptScores = Sequence[Mapping[str, Mapping[str, PromptMetric]]]


def sample_of(scores: PromptScores, metric: Metric | MetricResult, ids: Sequence[str]) -> Sample:
    """One metric on the prompts that have it, in order; repeats of a prompt are added up, since they are not
    independent.
    """
    key = metric.name
    of_prompt = [[by[name][key] for by in scores if key in by.get(name, {})] for name in ids]
    totals = [sum(value.total for value in values) for values in of_prompt if values]
    counts = [sum(value.count for value in values) for values in of_prompt if values]
    return Sample(np.array(totals, dtype=np.float64), np.array(counts, dtype=np.float64), metric.unit == PROPORTION)


def task_result(
    task: PlannedTask,
    prompts: Sequence[Prompt],
    answers: AnswerFile,
    scores: Sequence[Scores],
    *,
    seed: int,
    seconds: float,
) -> TaskResult:
    """The record of one task; ``scores`` are one a repeat. :class:`EvaluationError` where a prompt was not scored."""
    ids = [prompt.id for prompt in prompts]
    for repeat in scores:
        if unscored := [name for name in ids if not repeat.prompts.get(name) and not repeat.aggregates]:
            raise EvaluationError(f"task {task.name}: benchmark {task.entry.name!r} did not score {unscored[0]!r}")
    records = list(answers.answers.values())
    return TaskResult(
        task=task.name,
        label=str(scores[0].details.get("label", task.name)),
        benchmark=task.entry.name,
        options=task.options_json,
        file=task.file,
        prompts=len(prompts),
        scored=sum(bool(scores[0].prompts.get(name)) for name in ids),
        unscored=sum(not scores[0].prompts.get(name) for name in ids),
        unfinished=sum(record.finish_reason == "length" for record in records),
        prompts_sha256=prompts_sha256(prompts),
        sampling=_shared_sampling(prompts),
        seeds=tuple(seed + repeat for repeat in range(len(scores))),
        metrics=tuple(_metric_result(metric, scores, ids, seed) for metric in scores[0].metrics),
        prompt_tokens=_total(record.usage.prompt_tokens for record in records),
        completion_tokens=_total(record.usage.completion_tokens for record in records),
        seconds=round(seconds, 3),
        packages=scores[0].packages,
        details=scores[0].details,
    )


def _metric_result(metric: Metric, scores: Sequence[Scores], ids: Sequence[str], seed: int) -> MetricResult:
    by_repeat = [sample_of([repeat.prompts], metric, ids) for repeat in scores]
    together = sample_of([repeat.prompts for repeat in scores], metric, ids)
    aggregates = [repeat.aggregates.get(metric.name) for repeat in scores]
    values = [
        sample.score if aggregate is None else aggregate
        for sample, aggregate in zip(by_repeat, aggregates, strict=True)
    ]
    per_prompt = together.n > 0 and all(
        aggregate is None or math.isclose(aggregate, sample.score or 0.0, rel_tol=_SAME, abs_tol=_SAME)
        for sample, aggregate in zip(by_repeat, aggregates, strict=True)
    )
    known = [value for value in values if value is not None]
    return MetricResult(
        name=metric.name,
        label=metric.label,
        direction=metric.direction,
        unit=metric.unit,
        n=int(by_repeat[0].counts.sum()) if per_prompt else len(ids),
        prompts=together.n if per_prompt else len(ids),
        score=sum(known) / len(known) if known else None,
        interval=score_interval(together, seed) if per_prompt else None,
        standard_error=standard_error(together) if per_prompt else None,
        per_prompt=per_prompt,
        repeats=tuple(values) if len(values) > 1 else (),
    )


def _shared_sampling(prompts: Sequence[Prompt]) -> dict[str, object]:
    """The sampling parameters that every prompt has in common."""
    if not prompts:
        return {}
    dumps = [prompt.sampling.model_dump(mode="json", exclude_none=True) for prompt in prompts]
    return {key: value for key, value in dumps[0].items() if all(dump.get(key) == value for dump in dumps)}


def _total(counts: Iterable[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known else None
