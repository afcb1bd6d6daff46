"""Our artifact and layout against ModelOpt's own ``export_hf_checkpoint``, tensor for tensor, byte for byte."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fourfold.checkpoint.layouts import MODELOPT
from toolchain_jobs.outside import differences, equal_bytes, scales_by_group

from .conftest import Runs
from .jobs import IDENTITY


@pytest.mark.parametrize("name", IDENTITY)
def test_checkpoint_equals_modelopts_export(runs: Runs, name: str) -> None:
    ours, theirs = runs[name], runs[f"{name}-oracle"]
    assert set(ours.checkpoint.tensors) == set(theirs.checkpoint.tensors)
    assert differences(ours.checkpoint, theirs.checkpoint) == []


@pytest.mark.parametrize("name", IDENTITY)
def test_quantization_config_equals_modelopts(runs: Runs, name: str) -> None:
    ours, theirs = runs[name].folder / "checkpoint", runs[f"{name}-oracle"].folder / "checkpoint"
    for file, key in (("hf_quant_config.json", "quantization"), ("config.json", "quantization_config")):
        config, expected = (json.loads((folder / file).read_text())[key] for folder in (ours, theirs))
        if name == "mixed":
            # Theirs lists what is quantized and nothing of what is not; readers that know a list of the latter want it.
            listed = "exclude_modules" if key == "quantization" else "ignore"
            assert expected.pop(listed, []) == []
            assert config.pop(listed) == _excluded(runs["reference"].folder / "checkpoint")
            config.pop("group_size", None)
        assert config == expected


def _excluded(checkpoint: Path) -> list[str]:
    excluded: list[str] = json.loads((checkpoint / "hf_quant_config.json").read_text())["quantization"][
        "exclude_modules"
    ]
    return excluded


def test_config_is_the_sources_but_for_the_quantization(runs: Runs) -> None:
    config = json.loads((runs["reference"].folder / "checkpoint" / "config.json").read_text())
    del config["quantization_config"]
    assert config == runs.model.config


def test_a_raised_threshold_changes_input_scales_alone_and_names_them(runs: Runs) -> None:
    """Intended difference: experts below ``min_expert_tokens`` get the layer's largest input scale."""
    ours = runs["threshold"]
    named = {f"{module}.{MODELOPT.input_global_scale}" for module in ours.artifact.manifest.rare_modules}
    different = set(differences(ours.checkpoint, runs["reference-oracle"].checkpoint))
    assert different
    assert different <= named


@pytest.mark.parametrize("name", ["reference", "modelopt", "mse", "four-over-six", "gptq"])
def test_codec_decodes_as_modelopt_does(runs: Runs, name: str) -> None:
    result = runs[name]
    assert set(result.decoded) == set(result.artifact.manifest.quantized_modules)
    for module, expected in result.decoded.items():
        assert torch.equal(result.artifact.weight(module).dequantize(), expected), module


@pytest.mark.parametrize("name", ["reference", "modelopt", "gptq"])
def test_the_same_job_in_another_process_gives_equal_files(runs: Runs, second_runs: Runs, name: str) -> None:
    first, second = runs[name].artifact.manifest, second_runs[name].artifact.manifest
    assert first.files == second.files
    assert first == second


def test_scale_groups_share_both_scales(runs: Runs) -> None:
    groups = scales_by_group(runs["reference"].artifact, runs.model)
    assert {len(scales) for scales in groups.values()} == {1}


def test_both_unfusers_give_the_same_weights(runs: Runs) -> None:
    one, other = runs["reference"].checkpoint, runs["modelopt"].checkpoint
    names = [name for name in one.tensors if not name.endswith(MODELOPT.input_global_scale)]
    assert [name for name in names if not equal_bytes(one.read(name), other.read(name))] == []
