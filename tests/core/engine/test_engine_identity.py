"""Work that a streamed run left is gone on with by the very same stage alone: equal code, packages and threads."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fourfold.calibration import CalibrationSpec
from fourfold.errors import OutputError
from fourfold.manifest import Component
from fourfold.pipeline import Pipeline
from fourfold.plan import QuantizeConfig, plan_quantize
from fourfold.plugins import Registry
from fourfold.progress import NoProgress
from fourfold.stages.quantize import run_quantize
from fourfold.stages.request import QuantizeRequest

from .jobs import Bench

ANOTHER = r"holds the work of another run .* name another folder with --option work=DIR"
#: What stood in the record before a request knew its stage's identity.
BY_HAND = {"batch_size", "config", "device", "options", "recipe", "seed", "source", "targets", "tokens"}


class Interruption(Exception):  # noqa: N818 - what Ctrl-C is, not an error
    pass


class Stopping(NoProgress):
    """Interrupts when ``task`` begins; keeps all notes."""

    def __init__(self, task: str) -> None:
        self.task, self.notes = task, list[str]()

    def begin(self, task: str, *, total: int | None, unit: str) -> None:
        if task == self.task:
            raise Interruption

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def threads() -> Iterator[None]:
    """As many afterwards as before."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
def test_work_of_another_stage_is_refused(small: Bench):
    """The identity of the stage is a part of the record, None among its values; what is asked is the same each time."""
    work = small.work / "work"

    def run(stage: str | None, stop: Stopping) -> None:
        request = small.request(stream=True, work=str(work))
        run_quantize(request.model_copy(update={"stage_sha256": stage}), small.registry, stop)

    with pytest.raises(Interruption):
        run("a" * 64, Stopping("calibrate layer 1"))
    for other in ("b" * 64, None):
        with pytest.raises(OutputError, match=ANOTHER):
            run(other, Stopping("calibrate layer 1"))
    again = Stopping("calibrate layer 1")
    with pytest.raises(Interruption):
        run("a" * 64, again)
    assert again.notes == [f"{work}: going on at layer 1"]


@pytest.mark.usefixtures("threads")
def test_a_request_by_hand_is_known_by_what_it_asks(small: Bench):
    work = small.work / "work"
    with pytest.raises(Interruption):
        small.quantize(Stopping("calibrate layer 1"), stream=True, work=str(work))
    record = json.loads((work / "run.json").read_text())
    assert record.pop("stage") is None
    assert record.keys() == BY_HAND


@pytest.mark.usefixtures("threads")
def test_other_threads_packages_or_code_are_another_run(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """From the command's plan to the record in the work folder, the stage run in this process so that it can stop."""
    work = tmp_path / "work"
    spec = CalibrationSpec(source="demo", samples=4, sequence_length=64, batch_size=4)
    options = {"stream": True, "work": str(work)}
    config = QuantizeConfig(model="demo", quantizer=Component(name="reference", options=options), calibration=spec)
    plan = plan_quantize(config, registry)

    def run(stop: Stopping, threads: int = 1) -> None:
        def here(_python: Path, request: QuantizeRequest, *_: Any) -> None:
            run_quantize(request, registry, stop)

        monkeypatch.setattr("fourfold.pipeline.run_in_process", here)
        pipeline = Pipeline(
            plan, registry, NoProgress(), output=tmp_path / "out", stages=tmp_path / "stages", threads=threads
        )
        pipeline.make_artifact()

    def refused(threads: int = 1) -> None:
        with pytest.raises(OutputError, match=ANOTHER):
            run(Stopping("calibrate layer 1"), threads)

    with pytest.raises(Interruption):
        run(Stopping("calibrate layer 1"))
    refused(threads=2)
    others: dict[str, Callable[..., str]] = {"installed_sha256": lambda: "torch", "code_sha256": lambda _: "engine"}
    for name, other in others.items():
        with monkeypatch.context() as patch:
            patch.setattr(f"fourfold.environments.{name}", other)
            refused()
    again = Stopping("calibrate layer 2")
    with pytest.raises(Interruption):
        run(again)
    assert again.notes == [f"{work}: going on at layer 1"]


def test_work_stays_until_its_stage_is_finished(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A disk that is full when all has been calibrated, and the artifact is about to get its name."""
    work = tmp_path / "work"
    spec = CalibrationSpec(source="demo", samples=4, sequence_length=64, batch_size=4)
    options = {"stream": True, "work": str(work)}
    config = QuantizeConfig(model="demo", quantizer=Component(name="reference", options=options), calibration=spec)
    plan, begun = plan_quantize(config, registry), list[str]()

    class Watching(NoProgress):
        def begin(self, task: str, *, total: int | None, unit: str) -> None:
            begun.append(task)

    def make() -> Path:
        begun.clear()
        pipeline = Pipeline(plan, registry, Watching(), output=tmp_path / "out", stages=tmp_path / "stages")
        return pipeline.make_artifact()

    def full(folder: Path) -> None:
        if "quantize" in folder.name:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OutputError, match="the disk is full"):
        patch.setattr("fourfold.checkpoint.atomic.sync_folder", full)
        make()
    assert len(list(work.glob("layer-*.safetensors"))) == 6
    assert (make() / "manifest.json").is_file()
    assert not [task for task in begun if task.startswith("calibrate")]
    assert not work.exists()
