from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fourfold.compare import CompareReport, Level, compare
from fourfold.progress import NoProgress

from .builders import Make, export, make_artifact, source_tensors, write_source

MakeFolder = Callable[..., Path]


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unquantized model with an all-zero block in one linear."""
    tensors = source_tensors()
    tensors["model.language_model.layers.1.self_attn.q_proj.weight"][3, 16:32] = 0
    return write_source(tmp_path_factory.mktemp("source") / "model", tensors)


@pytest.fixture(scope="session")
def plain(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One quantization of ``source`` as an artifact and in both layouts, by layout."""
    folder = tmp_path_factory.mktemp("plain")
    artifact = make_artifact(source, folder / "canonical", Make())
    layouts = ("modelopt", "compressed-tensors")
    return {"canonical": artifact.path} | {name: export(artifact, folder / name, name) for name in layouts}


@pytest.fixture
def make(source: Path, tmp_path: Path) -> MakeFolder:
    """Quantize ``source`` in some other way; in a layout, or as an artifact."""

    def build(layout: str = "canonical", **how: object) -> Path:
        folder = tmp_path / f"made-{len(list(tmp_path.iterdir()))}"
        artifact = make_artifact(source, folder / "canonical", Make(**how))
        return artifact.path if layout == "canonical" else export(artifact, folder / layout, layout)

    return build


def run(a: Path, b: Path, level: Level = Level.BYTES, **options: object) -> CompareReport:
    return compare(a, b, level=level, progress=NoProgress(), **options)
