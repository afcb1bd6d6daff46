"""Checkpoints served for an evaluation: when a server starts, that it stops, and what it measures itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest

from eval.endpoint import FakeEndpoint, Payload, serving
from fourfold.errors import ConfigError, EvaluationError
from fourfold.evaluate.request import EvalConfig
from fourfold.evaluate.run import evaluate
from fourfold.hookspecs import hookimpl
from fourfold.interfaces.server import Endpoint, Load, LoadResult, Server
from fourfold.plugins import Entry, Registry, build_plugin_manager
from fourfold.progress import NoProgress
from fourfold.results import EvalRecord
from fourfold_eval import hooks


class OneAtATime(Server):
    """Serves a fake endpoint; says when, and that never two at once."""

    running: ClassVar[int] = 0
    served: ClassVar[list[str]] = []
    endpoint: ClassVar[FakeEndpoint]

    def plan(self, checkpoint: Path) -> Any:
        raise NotImplementedError

    @contextmanager
    def serve(self, checkpoint: Path, progress: Any) -> Iterator[Endpoint]:
        assert not OneAtATime.running
        OneAtATime.running += 1
        OneAtATime.served.append(checkpoint.name)
        try:
            with serving(OneAtATime.endpoint) as running:
                yield Endpoint(url=f"{running.url}/v1", model="fake-model", owned=True)
        finally:
            OneAtATime.running -= 1

    def measure(self, endpoint: Endpoint, loads: Any, progress: Any) -> tuple[LoadResult, ...]:
        def result(load: Load) -> LoadResult:
            speed = 100.0 + 10 * (load.seed % 3)
            return LoadResult(
                load=load, seconds=1.0, output_tokens_s=speed, ttft_s=1 / speed, num_output_tokens=load.output_tokens
            )

        assert endpoint.owned
        return tuple(result(load) for load in loads)


class _Plugin:
    @staticmethod
    @hookimpl
    def fourfold_register_servers() -> list[Entry]:
        return [Entry(name="one-at-a-time", summary="for tests", implementation="eval.test_served:OneAtATime")]


@pytest.fixture
def run(solve: Callable[[Payload], str], tmp_path: Path) -> Callable[..., EvalRecord]:
    OneAtATime.served.clear()
    OneAtATime.endpoint = FakeEndpoint(solve)
    registry = Registry(build_plugin_manager([hooks, _Plugin]))

    def go(**settings: Any) -> EvalRecord:
        given = {"model": "demo", "tasks": ["demo-math", "size"], "limit": 6, "output": tmp_path / "out"} | settings
        return evaluate(EvalConfig.parse(given, where=""), registry, NoProgress())

    return go


def test_each_model_is_served_once_and_not_again(run: Callable[..., EvalRecord]) -> None:
    first = run(baseline="demo")
    assert OneAtATime.served == ["model", "model"] and OneAtATime.running == 0
    assert first.comparisons[0].words.startswith("demo-math: 100.00 % against 100.00 %")
    second = run(baseline="demo")
    assert OneAtATime.served == ["model", "model"]
    assert second.model == first.model and second.model.served_model == "fake-model"
    assert second.tasks == first.tasks
    run(baseline="demo", limit=8)
    assert len(OneAtATime.served) == 4


def test_a_server_is_stopped_when_the_asking_fails(run: Callable[..., EvalRecord], monkeypatch) -> None:
    monkeypatch.setattr("fourfold.evaluate.client.RETRY_PAUSES_S", ())
    OneAtATime.endpoint.dies_after = 3
    with pytest.raises(EvaluationError, match="stopped answering"):
        run()
    assert (OneAtATime.served, OneAtATime.running) == (["model"], 0)


def test_what_is_wrong_is_said_before_serving(run: Callable[..., EvalRecord], tmp_path: Path) -> None:
    run()
    OneAtATime.served.clear()
    with pytest.raises(EvaluationError, match="kl: the baseline has no distributions"):
        base = EvalRecord.load(tmp_path / "out")
        folder = tmp_path / "with-kl"
        folder.mkdir()
        kl = base.tasks[0].model_copy(update={"task": "kl"})
        (folder / "eval.json").write_text(base.model_copy(update={"tasks": (kl,)}).model_dump_json())
        run(tasks=["kl"], baseline=str(folder), output=tmp_path / "kl")
    with pytest.raises(ConfigError, match=r"server one-at-a-time\.port: unknown key"):
        run(server_options={"port": 1}, output=tmp_path / "options")
    assert OneAtATime.served == []


def test_speed_is_the_servers_own_measurement(run: Callable[..., EvalRecord]) -> None:
    record = run(tasks=["speed"], options={"speed.output_tokens": 40})
    speed, ttft = record.tasks[0].metrics
    assert (speed.score, speed.unit, sorted(speed.repeats)) == (110.0, "tokens/s", [100.0, 110.0, 120.0])
    assert (ttft.score, ttft.unit) == (pytest.approx(1000 / 110), "ms")
    assert [load["output_tokens"] for load in record.tasks[0].details["loads"]] == [40, 40, 40]
    assert len({load["seed"] for load in record.tasks[0].details["loads"]}) == 3
