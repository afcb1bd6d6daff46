"""Two models are paired by prompt, also where a benchmark has no value for some of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from fourfold.evaluate.compare import compare_task
from fourfold.evaluate.score import sample_of
from fourfold.interfaces.benchmark import Metric
from fourfold.results import (
    RESPONSES_FOLDER,
    Comparison,
    Direction,
    MetricResult,
    PromptMetric,
    ResponseRecord,
    TaskResult,
    Verdict,
)

IDS = [f"p{index}" for index in range(8)]


def evaluated(folder: Path, right: Mapping[str, bool]) -> TaskResult:
    """A task of ``IDS`` whose one metric has a value for the prompts in ``right`` only."""
    score = sum(right.values()) / len(right)
    metric = MetricResult(
        name="correct", label="correct", direction=Direction.HIGHER, unit="proportion", n=len(right),
        prompts=len(right), score=score, per_prompt=True,
    )  # fmt: skip
    records = [
        ResponseRecord(
            prompt=name, prompt_sha256="0", text="", seconds=0.1,
            scores={"correct": PromptMetric(total=right[name])} if name in right else {},
        )
        for name in IDS
    ]  # fmt: skip
    path = folder / RESPONSES_FOLDER / "task.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("".join(record.model_dump_json() + "\n" for record in records), encoding="utf-8")
    return TaskResult(
        task="task", label="task", benchmark="plugin", file="task", prompts=len(IDS), scored=len(right),
        prompts_sha256="0", seeds=(0,), metrics=(metric,), seconds=1.0,
    )  # fmt: skip


def compare(tmp_path: Path, baseline: Mapping[str, bool], candidate: Mapping[str, bool]) -> Comparison:
    folders = tmp_path / "baseline", tmp_path / "candidate"
    tasks = evaluated(folders[0], baseline), evaluated(folders[1], candidate)
    (comparison,) = compare_task(*tasks, *folders, 0)
    return comparison


@pytest.mark.parametrize(("absent", "left_out", "pairs"), [("p7", 2, 6), (None, 1, 7)])
def test_prompts_that_only_one_has_a_value_for_are_left_out_and_counted(
    tmp_path: Path, absent: str | None, left_out: int, pairs: int
) -> None:
    """Prompt p3 is the only one on which they differ; by position every pair would be of unlike prompts."""
    baseline = {name: name in ("p3", "p5") for name in IDS if name != "p0"}
    candidate = {name: name in ("p0", "p5") for name in IDS if name != absent}
    comparison = compare(tmp_path, baseline, candidate)
    test = comparison.test
    assert test is not None
    assert (test.only_baseline, test.only_candidate) == (1, 0)
    assert (comparison.prompts, comparison.baseline_score, comparison.score) == (pairs, 2 / pairs, 1 / pairs)
    assert comparison.difference == pytest.approx(-1 / pairs)
    words = f"{pairs} prompts, noise floor not measured, left out: {left_out} that only one of the two has a value for)"
    assert comparison.words.endswith(words)


def test_models_without_a_prompt_in_common_are_not_tested(tmp_path: Path) -> None:
    comparison = compare(tmp_path, dict.fromkeys(IDS[:4], True), dict.fromkeys(IDS[4:], False))
    assert (comparison.verdict, comparison.difference_interval) == (Verdict.UNTESTED, None)
    assert "not tested: nothing to pair" in comparison.words
    assert comparison.words.endswith("left out: 8 that only one of the two has a value for)")


def test_nothing_is_said_where_nothing_is_left_out(tmp_path: Path) -> None:
    comparison = compare(tmp_path, dict.fromkeys(IDS, True), dict.fromkeys(IDS, True))
    assert comparison.words.endswith("(p = 1.0000, 8 prompts, noise floor not measured)")


def test_a_repeat_without_a_value_adds_none() -> None:
    one = {"correct": PromptMetric(total=1)}
    metric = Metric(name="correct", label="correct")
    sample = sample_of([{"a": one, "b": one}, {"a": one, "b": {}}], metric, ["a", "b", "c"])
    assert (sample.totals.tolist(), sample.counts.tolist()) == ([2.0, 1.0], [2.0, 1.0])
