"""A small random model and studies on it; the built-in quantizer runs without any toolchain."""

from __future__ import annotations

import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

import fourfold_eval.hooks
import fourfold_llmcompressor.hooks
import fourfold_modelopt.hooks
import fourfold_vllm.hooks
from fourfold.conformance.model import make_model
from fourfold.plugins import Registry, build_plugin_manager
from fourfold.progress import NoProgress
from fourfold.study import LocalExecutor, Study, StudyResults, plan_study, run_study
from fourfold.study.spec import parse_study

#: What the workspace installs; another plugin on this machine decides nothing here.
MEMBERS = (fourfold_modelopt.hooks, fourfold_llmcompressor.hooks, fourfold_vllm.hooks, fourfold_eval.hooks)

MakeStudy = Callable[..., Study]

BOTH = """
compare = true
[recipe]
scheme = "W4A16"
[matrix]
quantizers = ["reference"]
layouts = ["modelopt", "compressed-tensors"]
"""
CELLS = ("reference-max.default.modelopt", "reference-max.default.compressed-tensors")


class Notes(NoProgress):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)


@pytest.fixture(scope="session")
def registry() -> Registry:
    return Registry(build_plugin_manager(MEMBERS))


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("study") / "model")


@pytest.fixture
def make_study() -> MakeStudy:
    def make(text: str, *, model: Path | str = "demo") -> Study:
        head = f'name = "a-study"\nsummary = "for a test"\nmodel = "{model}"\n'
        return parse_study(tomllib.loads(head + text))

    return make


@pytest.fixture(scope="session")
def finished(model: Path, registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study's output, run to the end."""
    head = f'name = "a-study"\nsummary = "for a test"\nmodel = "{model}"\n'
    output = tmp_path_factory.mktemp("finished") / "output"
    plan = plan_study(parse_study(tomllib.loads(head + BOTH)), registry)
    run_study(plan, registry, LocalExecutor(registry), output, NoProgress())
    return output


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "copy"))


@pytest.fixture
def again(model: Path, registry: Registry, make_study: MakeStudy) -> Callable[..., tuple[StudyResults, list[str]]]:
    def run(output: Path, text: str = BOTH) -> tuple[StudyResults, list[str]]:
        notes = Notes()
        plan = plan_study(make_study(text, model=model), registry)
        return run_study(plan, registry, LocalExecutor(registry), output, notes), notes.texts

    return run


def read(output: Path) -> StudyResults:
    return StudyResults.model_validate_json((output / "results.json").read_bytes())
