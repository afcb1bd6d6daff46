"""In the tests: start a toolchain's process with its jobs, read what each left."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from fourfold.artifact import Artifact
from fourfold.checkpoint.index import TensorFolder
from fourfold.models.gemma4 import read_gemma4

_TESTS = Path(__file__).parents[1]


@dataclass(frozen=True)
class Result:
    """What one job left in its folder."""

    folder: Path

    @cached_property
    def artifact(self) -> Artifact:
        return Artifact(self.folder / "artifact")

    @cached_property
    def checkpoint(self) -> TensorFolder:
        return TensorFolder(self.folder / "checkpoint")

    def report(self, file: str) -> dict[str, Any]:
        return json.loads((self.folder / file).read_text())

    @property
    def error(self) -> dict[str, str]:
        return self.report("error.json")


ResultT = TypeVar("ResultT", bound=Result)


class Runs(Generic[ResultT]):
    """Results by job name. A job that failed unasked fails the test that wants its artifact."""

    def __init__(self, model: Path, folder: Path, kind: type[ResultT]) -> None:
        self.model = TensorFolder(model)
        self._folder = folder
        self._kind = kind
        self._results: dict[str, ResultT] = {}

    def __getitem__(self, name: str) -> ResultT:
        return self._results.setdefault(name, self._kind(self._folder / name))


@dataclass(frozen=True)
class Toolchain(Generic[ResultT]):
    """A toolchain's interpreter and the script that runs in it; its import alone takes seconds, so jobs are many."""

    python: Path
    script: Path
    kind: type[ResultT]

    def run(self, folder: Path, model: Path, jobs: list[dict[str, Any]], *, make_model: bool) -> Runs[ResultT]:
        """Do ``jobs`` in one process, on one thread and without a GPU; fails with the tail of the log."""
        folder.mkdir()
        spec = folder / "jobs.json"
        spec.write_text(json.dumps({"model": str(model), "make_model": make_model, "jobs": jobs}))
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
        fixed = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(_TESTS)}
        done = subprocess.run(
            [self.python, self.script, spec], capture_output=True, text=True, check=False, env=environment | fixed
        )
        assert done.returncode == 0, f"{self.script} failed:\n{done.stderr[-4000:]}"
        return Runs(model, folder, self.kind)


def differences(ours: TensorFolder, theirs: TensorFolder) -> list[str]:
    """Tensors of equal name whose dtype, shape or bytes differ."""
    different = []
    for entry in ours:
        other = theirs.entry(entry.name)
        same = (entry.dtype, entry.shape) == (other.dtype, other.shape)
        if not same or not equal_bytes(ours.read(entry.name), theirs.read(entry.name)):
            different.append(entry.name)
    return different


def equal_bytes(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))


def scales_by_group(artifact: Artifact, model: TensorFolder) -> dict[str, set[tuple[float, float]]]:
    """Pairs of global and input scale that the modules of each scale group have."""
    groups: dict[str, set[tuple[float, float]]] = {}
    for module in read_gemma4(model).linears.values():
        scale = artifact.input_global_scale(module.name)
        assert scale is not None
        pair = (artifact.weight(module.name).global_scale.item(), scale.item())
        groups.setdefault(module.scale_group, set()).add(pair)
    return groups
