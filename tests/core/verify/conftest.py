"""Good checkpoints to plant faults in: a random small Gemma 4 mixture of experts, quantized by the reference codec."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fourfold.checkpoint.index import TensorFolder

from .good_checkpoints import Editable, Variant, build
from .source_model import make_source

MakeEditable = Callable[..., Editable]


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unquantized model with its side files: 3 layers (the last with global attention, K as V), 12 experts."""
    return make_source(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="session")
def good(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Variant], Path]:
    """A good checkpoint of a variant, built once."""
    built: dict[Variant, Path] = {}

    def get(variant: Variant) -> Path:
        if variant not in built:
            built[variant] = build(TensorFolder(source), variant, tmp_path_factory.mktemp(variant.name))
        return built[variant]

    return get


@pytest.fixture
def editable(good: Callable[[Variant], Path], tmp_path: Path) -> MakeEditable:
    """A copy of a good checkpoint to plant faults in, without its manifest unless asked for."""

    def make(variant: Variant, *, manifest: bool = False) -> Editable:
        folder = tmp_path / "checkpoint"
        shutil.copytree(good(variant), folder)
        if not manifest:
            (folder / "manifest.json").unlink()
        return Editable(folder, variant)

    return make


@pytest.fixture(scope="session")
def source_config(source: Path) -> dict[str, object]:
    """The source's config.json."""
    return json.loads((source / "config.json").read_text(encoding="utf-8"))
