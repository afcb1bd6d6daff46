"""A small random model and studies on it; the built-in quantizer runs without any toolchain."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

import fourfold_llmcompressor.hooks
import fourfold_modelopt.hooks
from fourfold.conformance.model import make_model
from fourfold.plugins import Registry, build_plugin_manager
from fourfold.study import Study
from fourfold.study.spec import parse_study

MakeStudy = Callable[..., Study]


@pytest.fixture(scope="session")
def registry() -> Registry:
    return Registry(build_plugin_manager([fourfold_modelopt.hooks, fourfold_llmcompressor.hooks]))


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("study") / "model")


@pytest.fixture
def make_study() -> MakeStudy:
    def make(text: str, *, model: Path | str = "demo") -> Study:
        head = f'name = "a-study"\nsummary = "for a test"\nmodel = "{model}"\n'
        return parse_study(tomllib.loads(head + text))

    return make
