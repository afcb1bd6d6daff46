"""Scores, intervals and the evaluation command."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fourfold.demo import held_out
from fourfold.demo.evaluate import main, score, wilson_interval


@pytest.mark.parametrize(
    ("correct", "count", "low", "high"),
    # Newcombe (1998), "Two-sided confidence intervals for the single proportion", table I, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval(correct: int, count: int, low: float, high: float) -> None:
    assert wilson_interval(correct, count) == pytest.approx((low, high), abs=5e-5)


def test_no_trial_has_no_interval() -> None:
    assert wilson_interval(0, 0) is None
    assert score("math", [], []) == {
        "task": "math", "n": 0, "correct": 0, "score": None, "wilson_95": None, "parts": {},
    }  # fmt: skip


def test_a_response_is_right_only_when_all_its_parts_are() -> None:
    problems = held_out("vision", 4)
    right = [problem.target for problem in problems]
    responses = [right[0], right[1].replace(problems[1].metadata["shape"], "blob"), "", right[3]]
    result = score("vision", problems, responses)
    assert (result["n"], result["correct"], result["score"]) == (4, 2, 0.5)
    assert result["parts"] == {"colour": {"n": 4, "correct": 3}, "shape": {"n": 4, "correct": 2}}


def test_as_many_responses_as_problems() -> None:
    with pytest.raises(ValueError, match=r"zip\(\)"):
        score("math", held_out("math", 2), ["#### 1"])


def test_the_command_prints_one_json_object_a_task(capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["demo", "--task", "vision", "--task", "prose", "--count", "4", "--device", "cpu"])
    lines: list[dict[str, Any]] = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert status == 0
    assert [(line["task"], line["n"], line["split"]) for line in lines] == [("vision", 4, "test"), ("prose", 4, "test")]
    assert lines[1]["perplexity"] > 1
    assert lines[1]["nll_standard_error"] > 0
