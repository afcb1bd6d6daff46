"""From cells to jobs: their names, what they take of a machine, and what makes an evaluation another one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import torch

from fourfold.evaluate.request import EvalConfig
from fourfold.plugins import Environment, Registry
from fourfold.study import StudyPlan, parse_needs, plan_study
from fourfold.study.asked import evaluation_identity
from fourfold.study.jobs import Job
from fourfold.study.schedule import Schedule

from .conftest import MakeStudy

MakeJobs = Callable[..., dict[str, Job]]
ONE = """
[calibration]
source = "demo"
samples = 4
sequence_length = 64
batch_size = 2
[[cells]]
name = "tokens"
quantizer = "reference"
layout = "modelopt"
[evaluate]
tasks = ["size"]
"""


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def jobs(registry: Registry, make_study: MakeStudy, model: Path, tmp_path: Path) -> MakeJobs:
    def make(needs: Mapping[str, Mapping[str, float]] | None = None) -> dict[str, Job]:
        plan: StudyPlan = plan_study(make_study(ONE, model=model), registry)
        schedule = Schedule(plan, tmp_path, {}, lambda _: "0" * 64, needs or {})
        schedule.run_cells(plan.cells)
        schedule.evaluate(plan.cells, baseline=True)
        return {job.name: job for job in schedule.jobs}

    return make


def test_a_cell_may_be_called_as_a_job_is(jobs: MakeJobs):
    assert {name: job.after for name, job in jobs().items()} == {
        "tokens": (),
        "quantize tokens": ("tokens",),
        "cell tokens": ("quantize tokens",),
        "evaluate baseline": (),
        "evaluate tokens": ("evaluate baseline", "cell tokens"),
    }


@pytest.mark.usefixtures("three_threads")
def test_quantizing_on_a_cpu_takes_as_many_cpus_as_it_has_threads(jobs: MakeJobs):
    made = jobs()
    assert made["quantize tokens"].threads == 3
    assert {name: job.needs.cpus for name, job in made.items()} == {
        "tokens": 1, "quantize tokens": 3, "cell tokens": 1, "evaluate baseline": 1, "evaluate tokens": 1,
    }  # fmt: skip
    assert jobs(parse_needs(["quantize.cpus=2"]))["quantize tokens"].needs.cpus == 2


def test_an_evaluation_is_another_with_other_benchmarks_or_data(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    records = {"eval": "a"}

    def sha256(environment: Environment | None, implementation: str) -> str:
        return f"{implementation} {records.get(environment.name) if environment else None}"

    monkeypatch.setattr("fourfold.study.asked.environment_sha256", sha256)
    data = tmp_path / "data"
    (data / "tasks").mkdir(parents=True)
    (data / "ifeval.jsonl").write_text("{}\n")
    (data / "tasks" / "own.yaml").write_text("task: own\n")

    def identity(data: Path, *tasks: str) -> str:
        config = EvalConfig(model="m", tasks=tasks, output=tmp_path / "out", data=data)
        return evaluation_identity(config, registry, {})

    before, without = identity(data, "size", "ifeval"), identity(data, "size")
    assert identity(data.rename(tmp_path / "moved"), "size", "ifeval") == before
    data = tmp_path / "moved"
    records["eval"] = "b"
    moved_pin = identity(data, "size", "ifeval")
    assert moved_pin != before
    assert identity(data, "size") == without
    (data / "ifeval.jsonl").write_text("{ }\n")
    replaced = identity(data, "size", "ifeval")
    assert replaced != moved_pin
    (data / "tasks" / "own.yaml").write_text("task: mine\n")
    assert identity(data, "size", "ifeval") != replaced
