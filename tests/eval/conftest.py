"""Shared by the evaluation's tests: an endpoint that can solve the demo's tasks, and a run of the evaluator."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from eval.endpoint import FakeEndpoint, Payload, serving, text_of
from eval.tiny_model import TinyModel
from fourfold.demo import held_out
from fourfold.evaluate.request import EvalConfig
from fourfold.evaluate.run import evaluate
from fourfold.plugins import Registry
from fourfold.progress import NoProgress
from fourfold.results import EvalRecord

Run = Callable[..., EvalRecord]


def share(payload: Payload, salt: str = "") -> float:
    """A number in [0, 1) that belongs to the prompt."""
    digest = hashlib.sha256(f"{salt}{text_of(payload)}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


@pytest.fixture(scope="session")
def solve() -> Callable[[Payload], str]:
    """The reference response to any demo-math prompt."""
    targets = {problem.prompt: problem.target for problem in held_out("math")}
    return lambda payload: targets[payload["messages"][-1]["content"][-1]["text"]]


@pytest.fixture
def endpoint(solve: Callable[[Payload], str]) -> Iterator[FakeEndpoint]:
    """Solves demo-math."""
    with serving(FakeEndpoint(solve)) as running:
        yield running


@pytest.fixture
def run(registry: Registry, tmp_path: Path, endpoint: FakeEndpoint) -> Run:
    """Evaluate ``endpoint`` on demo-math unless told otherwise."""

    def go(output: str = "out", **settings: Any) -> EvalRecord:
        given = {"model": endpoint.url, "tasks": ["demo-math"], "limit": 30, "concurrency": 4} | settings
        config = EvalConfig.parse({**given, "output": tmp_path / output}, where="")
        return evaluate(config, registry, NoProgress())

    return go


@pytest.fixture
def models() -> Iterator[tuple[TinyModel, TinyModel]]:
    with serving(TinyModel(0.0)) as base, serving(TinyModel(0.3)) as other:
        yield base, other


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
