"""Evaluations from end to end against an endpoint whose answers are known, good and planted."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from eval.conftest import Run, lines, share
from eval.endpoint import FakeEndpoint, Payload, serving
from fourfold.demo import model_path
from fourfold.errors import ConfigError, EvaluationError, OutputError, ServerError
from fourfold.evaluate.client import RETRY_PAUSES_S, api_base
from fourfold.results import EvalRecord, Verdict


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fourfold.evaluate.client.RETRY_PAUSES_S", tuple(0.0 for _ in RETRY_PAUSES_S))


def wrong_in(rate: float, solve: Callable[[Payload], str], salt: str = "") -> Callable[[Payload], str]:
    return lambda payload: "#### 0" if share(payload, salt) < rate else solve(payload)


def test_the_record_says_what_was_asked_and_answered(run: Run, endpoint: FakeEndpoint, tmp_path: Path) -> None:
    record = run()
    task = record.task("demo-math")
    assert task is not None
    metric = task.metric("correct")
    assert (metric.score, metric.n, metric.prompts) == (1.0, 30, 30)
    assert metric.interval is not None and metric.interval.high == 1.0
    assert (record.model.kind, record.model.served_model) == ("endpoint", "fake-model")
    assert task.sampling == {"max_tokens": 120, "temperature": 0.0, "stop": [], "extra": {}}
    assert (task.prompt_tokens, task.completion_tokens, task.unfinished) == (330, 210, 0)
    assert {payload["seed"] for payload in endpoint.asked} == {1234}
    written = lines(tmp_path / "out/responses/demo-math.jsonl")
    assert [line["prompt"] for line in written] == [f"{index:05d}" for index in range(30)]
    assert all(line["scores"]["correct"] == {"total": 1.0, "count": 1} for line in written)
    assert EvalRecord.load(tmp_path / "out") == record


def test_the_record_says_which_task_was_cut(run: Run, tmp_path: Path) -> None:
    record = run(limit=None, limits={"demo-math": 7})
    assert (record.limit, record.limits) == (None, {"demo-math": 7})
    assert [(task.task, task.prompts) for task in record.cut] == [("demo-math", 7)]
    assert EvalRecord.load(tmp_path / "out").cut == record.cut
    assert record.model_copy(update={"limits": {"demo-math": 8}}).cut == ()
    assert record.model_copy(update={"limits": {}}).cut == ()


def test_a_model_made_worse_by_a_known_amount_is_called_worse(
    run: Run, endpoint: FakeEndpoint, solve, tmp_path: Path
) -> None:
    endpoint.answer = wrong_in(0.02, solve, "base")
    run("base", limit=250)
    endpoint.answer = lambda payload: (
        "#### 0" if share(payload, "base") < 0.02 or share(payload, "worse") < 0.05 else solve(payload)
    )
    (comparison,) = run("worse", limit=250, baseline=str(tmp_path / "base")).comparisons
    assert comparison.verdict is Verdict.WORSE
    assert comparison.test is not None and comparison.test.name == "mcnemar-exact"
    wrong = comparison.test.only_baseline
    assert wrong is not None and comparison.test.only_candidate == 0
    assert comparison.difference == pytest.approx(-wrong / 250)
    assert comparison.test.p_value == pytest.approx(2 / 2**wrong)
    assert comparison.retained == pytest.approx(comparison.score / comparison.baseline_score)
    interval = comparison.retained_interval
    assert interval is not None and interval.low < comparison.retained < interval.high < 1
    shown = f"; worse (p = {comparison.test.p_value:.4f}, 250 prompts, noise floor not measured)"
    assert comparison.words.endswith(shown)


def test_two_runs_of_the_same_model_are_not_told_apart(run: Run, endpoint: FakeEndpoint, solve, tmp_path: Path) -> None:
    """Each asking errs on other prompts, as a server does whose batches differ; the floor comes from repeats."""

    def noisy(salt: str) -> Callable[[Payload], str]:
        return lambda payload: "#### 0" if share(payload, f"{salt}/{payload['seed']}") < 0.05 else solve(payload)

    endpoint.answer = noisy("one run")
    run("base", limit=150, repeats=3)
    endpoint.answer = noisy("another")
    (comparison,) = run("again", limit=150, repeats=3, baseline=str(tmp_path / "base")).comparisons
    assert comparison.difference != 0
    floor = comparison.noise_floor
    assert floor is not None and len(floor.scores) == 3 and floor.value > 0
    assert comparison.test is not None and comparison.test.p_value > 0.05
    expected = Verdict.INSIDE_NOISE if abs(comparison.difference) <= floor.value else Verdict.NOT_SHOWN
    assert comparison.verdict is expected
    assert {payload["seed"] for payload in endpoint.asked} == {1234, 1235, 1236}


def test_a_difference_inside_the_floor_is_called_so(run: Run, endpoint: FakeEndpoint, solve, tmp_path: Path) -> None:
    """Planted: the baseline's repeats lie 10 points apart, the candidate 5 below its mean on the same prompts."""
    endpoint.answer = lambda payload: (
        "#### 0" if share(payload) < (0.0, 0.1)[payload["seed"] - 1234] else solve(payload)
    )
    run("base", limit=200, repeats=2)
    endpoint.answer = wrong_in(0.1, solve)
    (comparison,) = run("worse", limit=200, repeats=2, baseline=str(tmp_path / "base")).comparisons
    assert comparison.test is not None and comparison.test.p_value < 0.05
    assert comparison.verdict is Verdict.INSIDE_NOISE
    assert "inside the noise floor: the baseline's own runs differ by as much" in comparison.words


def test_more_runs_tell_what_one_cannot(run: Run, endpoint: FakeEndpoint, solve, tmp_path: Path) -> None:
    """Planted: a loss of 7 points that is smaller than the baseline's single runs lie apart."""

    def erring(salt: str, wrong: float) -> Callable[[Payload], str]:
        return lambda payload: "#### 0" if share(payload, f"{salt}/{payload['seed']}") < wrong else solve(payload)

    endpoint.answer = erring("base", 0.30)
    run("base", limit=150, repeats=8)
    endpoint.answer = erring("worse", 0.37)
    (comparison,) = run("worse", limit=150, repeats=8, baseline=str(tmp_path / "base")).comparisons
    floor = comparison.noise_floor
    assert floor is not None and len(floor.scores) == 8
    assert floor.value == pytest.approx(1.959964 * np.std(floor.scores, ddof=1) * math.sqrt(2 / 8))
    assert floor.value < -comparison.difference < max(floor.scores) - min(floor.scores)
    assert comparison.verdict is Verdict.WORSE


def test_an_endpoint_that_dies_midway_is_gone_on_from(run: Run, endpoint: FakeEndpoint, tmp_path: Path) -> None:
    endpoint.dies_after = 12
    with pytest.raises(EvaluationError, match=r"stopped answering \(status 503: the engine is dead\).*goes on from"):
        run(concurrency=1)  # or answers to others that were asked meanwhile come when the next run is counted
    kept = lines(tmp_path / "out/responses/demo-math.jsonl")
    assert len(kept) == 12
    endpoint.dies_after = None
    first = endpoint.asked.copy()
    endpoint.asked.clear()
    record = run()
    assert len(endpoint.asked) == 18
    assert not {json.dumps(p["messages"]) for p in first} & {json.dumps(p["messages"]) for p in endpoint.asked}
    assert record.tasks[0].metrics[0].score == 1.0
    endpoint.asked.clear()
    again = run()
    assert endpoint.asked == []
    assert again.tasks == record.tasks


def test_a_dead_connection_is_an_endpoint_down_too(run: Run, solve, tmp_path: Path) -> None:
    with serving(FakeEndpoint(solve)) as short_lived:
        url = short_lived.url
        run("gone", model=url, limit=3)
    with pytest.raises(EvaluationError, match=r"nothing answers there .*; is the server up"):
        run("gone", model=url, limit=6)


@pytest.mark.parametrize(
    ("given", "base"),
    [
        ("http://h:1", "http://h:1/v1"),
        ("https://h/x/v1/chat/completions", "https://h/x/v1"),
        ("http://h/v1/", "http://h/v1"),
        ("http://h/v1beta", "http://h/v1beta/v1"),
    ],
)
def test_addresses_are_understood(given: str, base: str) -> None:
    assert api_base(given) == base


def test_a_refused_prompt_is_named_and_not_tried_again(run: Run, endpoint: FakeEndpoint) -> None:
    endpoint.dies_after, endpoint.status = 5, 400
    with pytest.raises(EvaluationError, match=r"refused \('0000\d', 0\) with status 400: the engine is dead"):
        run(concurrency=1)


def test_a_baseline_of_other_prompts_is_refused_before_asking(run: Run, endpoint: FakeEndpoint, tmp_path: Path) -> None:
    run("base", limit=20)
    endpoint.asked.clear()
    base = str(tmp_path / "base")
    with pytest.raises(EvaluationError, match=r"'demo-math' was evaluated on other prompts \(20 of them.*same --limit"):
        run("more", limit=21, baseline=base)
    with pytest.raises(EvaluationError, match="was evaluated on other prompts"):
        run("drawn", limit=20, options={"demo-math.problem_seed": 1}, baseline=base)
    with pytest.raises(EvaluationError, match="task 'demo-vision' was not evaluated there"):
        run("task", limit=1, tasks=["demo-vision"], baseline=base)
    assert endpoint.asked == []


def test_a_baseline_model_is_evaluated_in_the_same_run(run: Run, endpoint: FakeEndpoint, solve, tmp_path: Path) -> None:
    with serving(FakeEndpoint(wrong_in(0.5, solve))) as weak:
        record = run(model=weak.url, baseline=endpoint.url, limit=40)
    assert record.comparisons[0].verdict is Verdict.WORSE
    assert record.comparisons[0].baseline_score == 1.0
    assert EvalRecord.load(tmp_path / "out/baseline").tasks[0].metrics[0].score == 1.0


def test_another_models_folder_is_refused(run: Run, endpoint: FakeEndpoint) -> None:
    run()
    endpoint.models = ("fake-model", "other-model")
    with pytest.raises(OutputError, match=r"another model or seed \(name, served_model\); choose another --output"):
        run(served_model="other-model")
    with pytest.raises(OutputError, match=r"another model or seed \(seed\)"):
        run(seed=1, served_model="fake-model")


def test_a_task_that_was_evaluated_is_not_lost(run: Run, endpoint: FakeEndpoint, tmp_path: Path) -> None:
    first = run(limit=3)
    endpoint.asked.clear()
    message = r"out: was evaluated on demo-math too; name that in --tasks as well \(its answers are kept\), or choose"
    with pytest.raises(OutputError, match=message):
        run(limit=3, tasks=["demo-instruct"])
    assert endpoint.asked == []
    endpoint.answer = lambda _: "bread"
    both = run(limit=3, tasks=["demo-instruct", "demo-math"])
    assert len(endpoint.asked) == 3
    assert both.task("demo-math") == first.task("demo-math")


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"tasks": []}, ConfigError, "--tasks: name at least one of demo-clip"),
        ({"tasks": ["demo-math", "demo-math"]}, ConfigError, "a task is named twice"),
        ({"tasks": ["nobody:demo-math"]}, EvaluationError, "unknown task 'nobody:demo-math'; near names: .*demo-math"),
        ({"tasks": ["lm-eval"]}, ConfigError, "lm-eval knows many tasks; name one as lm-eval:TASK"),
        ({"options": {"gsm8k.max_tokens": 3}}, ConfigError, "TASK.KEY=VALUE with a task of --tasks .demo-math."),
        ({"options": {"demo-math.sed": 3}}, ConfigError, "demo-math.sed: unknown key"),
        ({"data": "/nowhere"}, ConfigError, "--data /nowhere: not a folder"),
        ({"served_model": "absent"}, ServerError, "serves fake-model, not absent"),
        ({"model": "demo", "served_model": "x"}, ConfigError, "says which model of a server to ask; fourfold serves a"),
        ({"repeats": 0}, ConfigError, "repeats: should be greater than 0"),
        ({"tasks": ["size"]}, EvaluationError, "size: fake-model is an address; give the checkpoint's folder"),
        ({"tasks": ["kl"]}, EvaluationError, "returns no token ids; kl needs vLLM"),
    ],
)
def test_what_cannot_be_meant_is_refused(run: Run, settings: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        run(**settings)


def test_of_several_models_one_is_chosen(run: Run, endpoint: FakeEndpoint) -> None:
    endpoint.models = ("fake-model", "other-model")
    with pytest.raises(ServerError, match="serves fake-model, other-model; choose one with --served-model-name"):
        run(limit=1)
    assert run(limit=1, served_model="other-model").model.served_model == "other-model"


def test_one_prompt_gives_no_interval_and_no_test(run: Run, tmp_path: Path) -> None:
    metric = run("base", limit=1).tasks[0].metrics[0]
    assert (metric.n, metric.interval, metric.standard_error) == (1, None, None)
    (comparison,) = run("again", limit=1, baseline=str(tmp_path / "base")).comparisons
    assert comparison.verdict is Verdict.UNTESTED
    assert "fewer than two prompts" in comparison.words


def test_the_command_line_prints_scores_or_the_record(cli, endpoint: FakeEndpoint, tmp_path: Path) -> None:
    common = ("eval", endpoint.url, "--limit", 5, "--output", tmp_path / "out")
    shown = cli(*common, "--tasks", "demo-math, size")
    assert (shown.returncode, "size: fake-model is an address" in shown.stderr) == (2, True)
    plain = cli(*common, "--tasks", "demo-math")
    assert plain.returncode == 0, plain.stderr
    assert "100.00 %" in plain.stdout and "fake-model: demo-math" not in plain.stdout
    document = cli(*common, "--tasks", "demo-math", "--json", "--baseline", tmp_path / "out")
    record = EvalRecord.model_validate_json(document.stdout)
    assert record.comparisons[0].retained == 1.0
    refused = cli(*common, "--tasks", "demo-maths:x")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "unknown task 'demo-maths:x'; near names: demo-math" in refused.stderr


def test_a_folder_without_server_tasks_is_not_served(run: Run, tmp_path: Path) -> None:
    """``size`` looks at files alone; its figure is the folder's."""
    record = run(model="demo", tasks=["size"])
    folder = model_path()
    total = sum(path.stat().st_size for path in folder.iterdir())
    weights = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert [metric.score for metric in record.tasks[0].metrics] == [total, weights]
    assert (record.model.scheme, record.model.size_bytes, record.model.kind) == ("BF16", total, "checkpoint")
    again = run("again", model="demo", tasks=["size"], baseline=str(tmp_path / "out"))
    assert [comparison.ratio for comparison in again.comparisons] == [1.0, 1.0]
    assert {comparison.verdict for comparison in again.comparisons} == {Verdict.UNTESTED}


@pytest.mark.parametrize("baseline", [False, True], ids=["alone", "with a baseline"])
def test_an_output_that_is_a_file_is_refused_before_anything_is_asked(
    run: Run, endpoint: FakeEndpoint, tmp_path: Path, baseline: bool
) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(OutputError, match=r"out/\S*run\.json: \S*/out is a file, not a folder; choose another place"):
        run(**({"baseline": endpoint.url} if baseline else {}))
    assert endpoint.asked == []
    assert (tmp_path / "out").read_text() == "mine"
