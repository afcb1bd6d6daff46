"""Fixtures: one process of llm-compressor's environment does all jobs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import toolchain_jobs.outside
from fourfold.checkpoint.index import TensorFolder
from fourfold.config import Options
from fourfold.progress import NoProgress
from fourfold_llmcompressor.exporter import CompressedTensorsExporter

from .jobs import FIRST_RUN, SECOND_RUN

SCRIPT = Path(__file__).parent / "toolchain.py"


@dataclass(frozen=True)
class Result(toolchain_jobs.outside.Result):
    """What one job left."""

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


Runs = toolchain_jobs.outside.Runs[Result]


@pytest.fixture(scope="session")
def toolchain(environments: dict[str, Path]) -> toolchain_jobs.outside.Toolchain[Result]:
    return toolchain_jobs.outside.Toolchain(environments["llmcompressor"], SCRIPT, Result)


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("llmcompressor")


@pytest.fixture(scope="session")
def runs(toolchain: toolchain_jobs.outside.Toolchain[Result], work: Path) -> Runs:
    """The jobs of :data:`FIRST_RUN`, on a small random model made for them."""
    return toolchain.run(work / "first", work / "model", FIRST_RUN, make_model=True)


@pytest.fixture(scope="session")
def second_runs(toolchain: toolchain_jobs.outside.Toolchain[Result], runs: Runs, work: Path) -> Runs:
    """A second process on the same model: repetitions and refusals."""
    return toolchain.run(work / "second", runs.model.path, SECOND_RUN, make_model=False)
