"""One model against the baseline on the same prompts: what is retained, and whether the difference means anything."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from statistics import stdev

from fourfold.errors import EvaluationError
from fourfold.evaluate.answers import read_responses
from fourfold.evaluate.score import PromptScores, sample_of
from fourfold.evaluate.statistics import Z95, Sample, difference_interval, paired_test, retained_interval
from fourfold.results import (
    PROPORTION,
    RESPONSES_FOLDER,
    Comparison,
    Direction,
    EvalRecord,
    MetricResult,
    NoiseFloor,
    PairedTest,
    PromptMetric,
    TaskResult,
    Verdict,
)

#: A paired test below this p says that there is a difference.
SIGNIFICANCE = 0.05


@dataclass(frozen=True)
class _Pair:
    """One metric on the prompts that both have a value for; ``left_out`` counts those that only one of them has."""

    baseline: Sample
    candidate: Sample
    left_out: int


def require_same_prompts(baseline: TaskResult | None, task: str, sha256: str, where: str) -> TaskResult:
    """The baseline's result for ``task``; :class:`EvaluationError` where it has none or was asked other prompts."""
    if baseline is None:
        raise EvaluationError(f"baseline {where}: task {task!r} was not evaluated there; run it with the same --tasks")
    if baseline.prompts_sha256 != sha256:
        raise EvaluationError(
            f"baseline {where}: task {task!r} was evaluated on other prompts ({baseline.prompts} of them, sha256 "
            f"{baseline.prompts_sha256[:12]}, here {sha256[:12]}); give both the same --limit, --data and options"
        )
    return baseline


def compare_task(
    baseline: TaskResult, candidate: TaskResult, baseline_folder: Path, folder: Path, seed: int
) -> tuple[Comparison, ...]:
    """Every metric both have, in the candidate's order."""
    require_same_prompts(baseline, candidate.task, candidate.prompts_sha256, str(baseline_folder))
    theirs = {metric.name: metric for metric in baseline.metrics}
    both = [(theirs[metric.name], metric) for metric in candidate.metrics if metric.name in theirs]
    paired = any(metric.per_prompt for _, metric in both)
    samples = (_scores(baseline, baseline_folder), _scores(candidate, folder)) if paired else None
    found = []
    for base, metric in both:
        pair = None
        if samples and base.per_prompt and metric.per_prompt:
            pair = _pair(*samples, metric)
        if base.score is not None and metric.score is not None:
            found.append(_compare(candidate, (base, base.score), (metric, metric.score), pair, seed))
    return tuple(found)


def noise_floor(baseline: MetricResult, runs: int) -> NoiseFloor | None:
    """From the baseline's repeated scores, for a candidate of so many ``runs``; None without a repeat."""
    scores = tuple(score for score in baseline.repeats if score is not None)
    if len(scores) < 2:
        return None
    return NoiseFloor(value=Z95 * stdev(scores) * sqrt(1 / len(scores) + 1 / runs), scores=scores)


def _scores(task: TaskResult, folder: Path) -> list[dict[str, dict[str, PromptMetric]]]:
    """Scores by repeat and prompt, from the responses file."""
    records = read_responses(folder / RESPONSES_FOLDER / f"{task.file}.jsonl")
    by_repeat: list[dict[str, dict[str, PromptMetric]]] = [{} for _ in task.seeds]
    for record in records:
        by_repeat[record.repeat][record.prompt] = dict(record.scores)
    return by_repeat


def _pair(baseline: PromptScores, candidate: PromptScores, metric: MetricResult) -> _Pair:
    theirs, ours = _prompts_with(metric.name, baseline), _prompts_with(metric.name, candidate)
    shared = [name for name in ours if name in theirs]
    left_out = len(theirs) + len(ours) - 2 * len(shared)
    return _Pair(sample_of(baseline, metric, shared), sample_of(candidate, metric, shared), left_out)


def _prompts_with(metric: str, scores: PromptScores) -> dict[str, None]:
    return {name: None for by_prompt in scores for name, values in by_prompt.items() if metric in values}


def _compare(
    task: TaskResult,
    baseline: tuple[MetricResult, float],
    candidate: tuple[MetricResult, float],
    pair: _Pair | None,
    seed: int,
) -> Comparison:
    """One metric; both come with their score, which is not None."""
    (base, base_score), (metric, score) = baseline, candidate
    prompts = metric.prompts
    if pair and pair.left_out and pair.baseline.score is not None and pair.candidate.score is not None:
        # A difference between scores of unlike prompts is none of the models: every figure is of the shared ones.
        base_score, score, prompts = pair.baseline.score, pair.candidate.score, pair.candidate.n
    difference = score - base_score
    ratio = score / base_score if base_score else None
    samples = (pair.baseline, pair.candidate) if pair else None
    test = paired_test(*samples, seed) if samples else None
    floor = noise_floor(base, max(1, len(metric.repeats)))
    comparison = Comparison(
        task=task.task,
        metric=metric.name,
        label=metric.label,
        direction=metric.direction,
        unit=metric.unit,
        prompts=prompts,
        baseline_score=base_score,
        score=score,
        difference=difference,
        difference_interval=difference_interval(*samples, seed) if samples else None,
        ratio=ratio,
        test=test,
        noise_floor=floor,
        verdict=_verdict(difference, metric.direction, test, floor),
        words="",
    )
    if comparison.is_quality:
        interval = retained_interval(*samples, seed) if samples else None
        comparison = comparison.model_copy(update={"retained": ratio, "retained_interval": interval})
    return comparison.model_copy(update={"words": _in_words(comparison, pair.left_out if pair else 0)})


def _verdict(difference: float, direction: Direction, test: PairedTest | None, floor: NoiseFloor | None) -> Verdict:
    if floor is not None and abs(difference) <= floor.value:
        return Verdict.INSIDE_NOISE
    if test is None:
        return Verdict.UNTESTED
    if test.p_value >= SIGNIFICANCE:
        return Verdict.NOT_SHOWN
    return Verdict.BETTER if (difference > 0) == (direction is Direction.HIGHER) else Verdict.WORSE


def _in_words(comparison: Comparison, left_out: int) -> str:
    """The verdict as one sentence, with the figures it rests on."""
    unit = comparison.unit
    scores = f"{_show(comparison.score, unit)} against {_show(comparison.baseline_score, unit)}"
    change = _show_change(comparison)
    if (interval := comparison.difference_interval) is not None:
        change += f", 95 % interval {_bare(interval.low, unit)} to {_bare(interval.high, unit)}"
    floor = comparison.noise_floor
    evidence = [] if comparison.test is None else [f"p {_show_p(comparison.test.p_value)}"]
    evidence.append(f"{comparison.prompts:,} prompts")
    evidence.append(f"noise floor {_show_signed(floor.value, unit)[1:]}" if floor else "noise floor not measured")
    if left_out:
        evidence.append(f"left out: {left_out:,} that only one of the two has a value for")
    verdict = {
        Verdict.WORSE: "worse",
        Verdict.BETTER: "better",
        Verdict.INSIDE_NOISE: "inside the noise floor: the baseline's own runs differ by as much",
        Verdict.NOT_SHOWN: "no difference shown",
        Verdict.UNTESTED: "not tested: nothing to pair, or fewer than two prompts",
    }[comparison.verdict]
    return f"{comparison.label}: {scores} ({change}); {verdict} ({', '.join(evidence)})"


def _show(value: float, unit: str) -> str:
    return f"{100 * value:.2f} %" if unit == PROPORTION else f"{value:,.6g} {unit}"


def _show_signed(value: float, unit: str) -> str:
    return f"{100 * value:+.2f} points" if unit == PROPORTION else f"{value:+,.4g} {unit}"


def _bare(value: float, unit: str) -> str:
    return _show_signed(value, unit).rpartition(" ")[0]


def _show_change(comparison: Comparison) -> str:
    if comparison.unit != PROPORTION and comparison.ratio is not None:
        return f"{comparison.ratio:.3g} times"
    return _show_signed(comparison.difference, comparison.unit)


def _show_p(value: float) -> str:
    return "< 0.0001" if value < 1e-4 else f"= {value:.4f}"


def compare_records(
    baseline: EvalRecord, baseline_folder: Path, tasks: tuple[TaskResult, ...], folder: Path, seed: int
) -> tuple[Comparison, ...]:
    """Every task of the candidate against the baseline's."""
    found: list[Comparison] = []
    for task in tasks:
        base = require_same_prompts(baseline.task(task.task), task.task, task.prompts_sha256, str(baseline_folder))
        found.extend(compare_task(base, task, baseline_folder, folder, seed))
    return tuple(found)
