"""Fixtures: one process of ModelOpt's environment does all jobs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import toolchain_jobs.outside

from .jobs import FIRST_RUN, SECOND_RUN

SCRIPT = Path(__file__).parent / "toolchain.py"


@dataclass(frozen=True)
class Result(toolchain_jobs.outside.Result):
    """What one job left."""

    @cached_property
    def decoded(self) -> dict[str, torch.Tensor]:
        return load_file(self.folder / "decoded.safetensors")

    @cached_property
    def inputs(self) -> dict[str, torch.Tensor]:
        return load_file(self.folder / "inputs.safetensors")

    @property
    def facts(self) -> dict[str, Any]:
        return self.report("facts.json")


Runs = toolchain_jobs.outside.Runs[Result]


@pytest.fixture(scope="session")
def toolchain(environments: dict[str, Path]) -> toolchain_jobs.outside.Toolchain[Result]:
    return toolchain_jobs.outside.Toolchain(environments["modelopt"], SCRIPT, Result)


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("modelopt")


@pytest.fixture(scope="session")
def runs(toolchain: toolchain_jobs.outside.Toolchain[Result], work: Path) -> Runs:
    """The jobs of :data:`FIRST_RUN`, on a small random model made for them."""
    return toolchain.run(work / "first", work / "model", FIRST_RUN, make_model=True)


@pytest.fixture(scope="session")
def second_runs(toolchain: toolchain_jobs.outside.Toolchain[Result], runs: Runs, work: Path) -> Runs:
    """A second process on the same model: repetitions and refusals."""
    return toolchain.run(work / "second", runs.model.path, SECOND_RUN, make_model=False)
