"""Fixtures: one process of ModelOpt's environment does all jobs, since its import alone takes seconds."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fourfold.artifact import Artifact
from fourfold.checkpoint.index import TensorFolder

from .jobs import FIRST_RUN, SECOND_RUN

SCRIPT = Path(__file__).parent / "toolchain.py"


@dataclass(frozen=True)
class Result:
    """What one job left."""

    folder: Path

    @cached_property
    def artifact(self) -> Artifact:
        return Artifact(self.folder / "artifact")

    @cached_property
    def checkpoint(self) -> TensorFolder:
        return TensorFolder(self.folder / "checkpoint")

    @cached_property
    def decoded(self) -> dict[str, torch.Tensor]:
        return load_file(self.folder / "decoded.safetensors")

    @cached_property
    def inputs(self) -> dict[str, torch.Tensor]:
        return load_file(self.folder / "inputs.safetensors")

    @property
    def facts(self) -> dict[str, Any]:
        return json.loads((self.folder / "facts.json").read_text())

    @property
    def error(self) -> dict[str, str]:
        return json.loads((self.folder / "error.json").read_text())


class Runs:
    """Results by job name. A job that failed unasked fails the test that wants its artifact."""

    def __init__(self, model: Path, folder: Path) -> None:
        self.model = TensorFolder(model)
        self._folder = folder

    def __getitem__(self, name: str) -> Result:
        return Result(self._folder / name)


def run_jobs(python: Path, folder: Path, model: Path, jobs: list[dict[str, Any]], *, make_model: bool) -> Runs:
    """Do ``jobs`` in ModelOpt's environment; fails with the tail of the log."""
    folder.mkdir()
    spec = folder / "jobs.json"
    spec.write_text(json.dumps({"model": str(model), "make_model": make_model, "jobs": jobs}))
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(
        [python, SCRIPT, spec],
        capture_output=True,
        text=True,
        check=False,
        env=environment | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, f"toolchain.py failed:\n{done.stderr[-4000:]}"
    return Runs(model, folder)


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("modelopt")


@pytest.fixture(scope="session")
def runs(environments: dict[str, Path], work: Path) -> Runs:
    """The jobs of :data:`FIRST_RUN`, on a small random model made for them."""
    return run_jobs(environments["modelopt"], work / "first", work / "model", FIRST_RUN, make_model=True)


@pytest.fixture(scope="session")
def second_runs(environments: dict[str, Path], runs: Runs, work: Path) -> Runs:
    """A second process on the same model: repetitions and refusals."""
    return run_jobs(environments["modelopt"], work / "second", runs.model.path, SECOND_RUN, make_model=False)
