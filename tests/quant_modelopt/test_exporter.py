"""The ``modelopt`` layout from any artifact, without any toolchain."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fourfold.artifact import Artifact
from fourfold.config import Options
from fourfold.manifest import sha256_files
from fourfold.progress import NoProgress
from fourfold_modelopt.exporter import ModelOptExporter, exclude_modules

from .conftest import Runs


def test_export_needs_no_toolchain_and_gives_the_same_files(runs: Runs, tmp_path: Path) -> None:
    """Here in core's environment, there in ModelOpt's."""
    ModelOptExporter(Options()).export(runs["modelopt-kv-fp8"].artifact, tmp_path, NoProgress())
    assert sha256_files(tmp_path) == sha256_files(runs["modelopt-kv-fp8"].folder / "checkpoint")


def test_kv_scales_stand_beside_the_projections(runs: Runs) -> None:
    """Also where K is reused as V and there is no ``v_proj`` (layer 1)."""
    checkpoint = runs["modelopt-kv-fp8"].checkpoint
    for layer in range(2):
        for name in ("k_proj.k_scale", "v_proj.v_scale"):
            entry = checkpoint.entry(f"model.language_model.layers.{layer}.self_attn.{name}")
            assert (entry.dtype, entry.shape) == ("F32", ())
    assert "model.language_model.layers.1.self_attn.v_proj.weight" not in checkpoint


def test_weights_alone_leave_no_trace_of_activations(runs: Runs) -> None:
    checkpoint = runs["w4a16"].checkpoint
    assert not [name for name in checkpoint.tensors if name.endswith("input_scale")]
    config = checkpoint.config["quantization_config"]
    assert config["quant_algo"] == "W4A16_NVFP4"
    assert "input_activations" not in config["config_groups"]["group_0"]


@pytest.mark.parametrize("name", ["modelopt", "experts-only"])
def test_no_pattern_covers_a_quantized_module(runs: Runs, name: str) -> None:
    """vLLM takes a pattern without its star as a substring too; both readings are checked."""
    artifact = runs[name].artifact
    for pattern in exclude_modules(artifact):
        stem = pattern.removesuffix("*")
        covered = [module for module in artifact.manifest.quantized_modules if stem in module]
        assert covered == [], pattern


def test_another_quantizers_artifact_is_not_called_modelopts(runs: Runs, tmp_path: Path) -> None:
    artifact = Artifact(runs["modelopt"].folder / "artifact")
    artifact.manifest = artifact.manifest.model_copy(
        update={
            "quantizer": artifact.manifest.quantizer.model_copy(update={"name": "other"}),
            "packages": {"fourfold": "0.1.0"},
        }
    )
    ModelOptExporter(Options()).export(artifact, tmp_path, NoProgress())
    written = json.loads((tmp_path / "hf_quant_config.json").read_text())
    assert written["producer"] == {"name": "fourfold", "version": "0.1.0"}
    assert json.loads((tmp_path / "config.json").read_text())["quantization_config"]["quant_method"] == "modelopt"
