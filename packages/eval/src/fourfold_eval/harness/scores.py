"""From the harness's results to ours: its own aggregate of each metric, and each prompt's part in it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from fourfold.errors import EvaluationError
from fourfold.interfaces.benchmark import Metric, Scores
from fourfold.results import PROPORTION, Direction, PromptMetric


def scores_of(
    results: Mapping[str, Any],
    names: Mapping[str, tuple[str, str]],
    label: str,
    details: Mapping[str, Any],
    packages: Mapping[str, str],
) -> Scores:
    """``results`` of ``simple_evaluate``; ``names`` gives some metrics a name and a label of ours."""
    leaves = list(results["samples"])
    parts: dict[str, list[PromptMetric]] = defaultdict(list)
    metrics: dict[str, Metric] = {}
    aggregates: dict[str, float] = {}
    prompts: dict[str, dict[str, PromptMetric]] = {}
    for leaf in leaves:
        prefix = f"{leaf}/" if len(leaves) > 1 else ""
        for sample in results["samples"][leaf]:
            _add_sample(sample, leaf, prefix, names, prompts, parts)
        for key, value in _scores(results["results"][leaf]):
            name, shown = names.get(key, (f"{prefix}{key}", f"{prefix or label + ' '}{key}"))
            if not math.isfinite(value):
                raise EvaluationError(f"task {leaf!r}: the harness scores {key} as {value}, which is no number")
            better = results["higher_is_better"].get(leaf, {}).get(key.partition(",")[0], True)
            shares = parts[name]
            unit = PROPORTION if shares and all(0 <= part.total <= part.count for part in shares) else "score"
            direction = Direction.HIGHER if better is not False else Direction.LOWER
            metrics[name] = Metric(name=name, label=shown, direction=direction, unit=unit)
            aggregates[name] = value
    described = {
        "versions": {leaf: results["versions"].get(leaf) for leaf in leaves},
        "num_fewshot": {leaf: results["n-shot"].get(leaf) for leaf in leaves},
    }
    return Scores(
        metrics=tuple(metrics.values()),
        prompts=prompts,
        aggregates=aggregates,
        details={**details, **described},
        packages=dict(packages),
    )


def _scores(results: Mapping[str, Any]) -> list[tuple[str, float]]:
    """(metric and filter, score); no filter's name where there is none."""
    found = []
    for key, value in results.items():
        metric, comma, chosen = key.partition(",")
        if comma and not metric.endswith("_stderr") and isinstance(value, int | float):
            found.append((metric if chosen == "none" else key, float(value)))
    return found


def _add_sample(
    sample: Mapping[str, Any],
    leaf: str,
    prefix: str,
    names: Mapping[str, tuple[str, str]],
    prompts: dict[str, dict[str, PromptMetric]],
    parts: dict[str, list[PromptMetric]],
) -> None:
    """What one document under one filter adds; a metric that is no number or list of them has no part a prompt."""
    having = prompts.setdefault(f"{leaf}/{sample['doc_id']:05d}", {})
    for metric in sample["metrics"]:
        key = metric if sample["filter"] == "none" else f"{metric},{sample['filter']}"
        name, _ = names.get(key, (f"{prefix}{key}", ""))
        if (part := _part(sample[metric])) is not None:
            having[name] = part
            parts[name].append(part)


def _part(value: Any) -> PromptMetric | None:
    if isinstance(value, int | float) and math.isfinite(value):
        return PromptMetric(total=float(value))
    if isinstance(value, list) and value and all(isinstance(item, int | float) for item in value):
        return PromptMetric(total=float(sum(value)), count=len(value))
    return None
