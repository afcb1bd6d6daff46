"""Fixtures: one process of llm-compressor's environment does all jobs; its import alone takes seconds."""

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
from fourfold.config import Options
from fourfold.progress import NoProgress
from fourfold_llmcompressor.exporter import CompressedTensorsExporter

from .jobs import FIRST_RUN, SECOND_RUN

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venvs" / "llmcompressor" / "bin" / "python"
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
        """llm-compressor's own, or ours, exported here: without the toolchain."""
        path = self.folder / "checkpoint"
        if not path.exists():
            path.mkdir()
            CompressedTensorsExporter(Options()).export(self.artifact, path, NoProgress())
        return TensorFolder(path)

    @cached_property
    def weights(self) -> dict[str, torch.Tensor]:
        return load_file(self.folder / "weights.safetensors")

    def report(self, file: str) -> dict[str, Any]:
        return json.loads((self.folder / file).read_text())

    @property
    def error(self) -> dict[str, str]:
        return self.report("error.json")


class Runs:
    """Results by job name."""

    def __init__(self, model: Path, folder: Path) -> None:
        self.model = TensorFolder(model)
        self._folder = folder
        self._results: dict[str, Result] = {}

    def __getitem__(self, name: str) -> Result:
        return self._results.setdefault(name, Result(self._folder / name))


def run_jobs(folder: Path, model: Path, jobs: list[dict[str, Any]], *, make_model: bool) -> Runs:
    """Do ``jobs`` in llm-compressor's environment; fails with the tail of the log."""
    if not PYTHON.exists():
        pytest.fail(f"{PYTHON} is not there; set it up with: uv run fourfold setup llmcompressor")
    folder.mkdir()
    spec = folder / "jobs.json"
    spec.write_text(json.dumps({"model": str(model), "make_model": make_model, "jobs": jobs}))
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(
        [PYTHON, SCRIPT, spec],
        capture_output=True,
        text=True,
        check=False,
        env=environment | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, f"toolchain.py failed:\n{done.stderr[-4000:]}"
    return Runs(model, folder)


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("llmcompressor")


@pytest.fixture(scope="session")
def runs(work: Path) -> Runs:
    """The jobs of :data:`FIRST_RUN`, on a small random model made for them."""
    return run_jobs(work / "first", work / "model", FIRST_RUN, make_model=True)


@pytest.fixture(scope="session")
def second_runs(runs: Runs, work: Path) -> Runs:
    """A second process on the same model: repetitions and refusals."""
    return run_jobs(work / "second", runs.model.path, SECOND_RUN, make_model=False)
