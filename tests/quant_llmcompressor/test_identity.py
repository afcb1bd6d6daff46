"""Our artifact and layout against llm-compressor's own ``save_pretrained``, byte for byte."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest
import torch

from fourfold.models.gemma4 import read_gemma4
from fourfold.nvfp4 import BlockScalePolicy, quantize
from toolchain_jobs.outside import differences, equal_bytes, scales_by_group

from .conftest import Runs
from .jobs import IDENTITY

#: Written by us in float32 as every scale is, by llm-compressor in the model's dtype.
KV_SCALES = (".k_scale", ".v_scale")
#: Layer 1 takes its keys as values. No tensor has this name, but vLLM builds q, k and v as one linear, and refuses it
#: where only q and k are ignored, as in llm-compressor's own list.
VALUES_READ_FROM_KEYS = "model.language_model.layers.1.self_attn.v_proj"


@pytest.mark.parametrize("name", IDENTITY)
def test_checkpoint_equals_save_pretrained(runs: Runs, name: str) -> None:
    ours, theirs = runs[name], runs[f"{name}-oracle"]
    assert set(ours.checkpoint.tensors) == set(theirs.checkpoint.tensors)
    assert [n for n in differences(ours.checkpoint, theirs.checkpoint) if not n.endswith(KV_SCALES)] == []


def test_kv_scales_have_llmcompressors_values_in_float32(runs: Runs) -> None:
    ours, theirs = runs["kv-fp8"].checkpoint, runs["kv-fp8-oracle"].checkpoint
    names = [entry.name for entry in ours if entry.name.endswith(KV_SCALES)]
    assert len(names) == 2 * read_gemma4(runs.model).num_layers
    for name in names:
        assert (ours.entry(name).dtype, theirs.entry(name).dtype) == ("F32", "BF16")
        assert torch.equal(ours.read(name), theirs.read(name).float())


@pytest.mark.parametrize("name", IDENTITY)
def test_quantization_config_equals_llmcompressors_but_for_targets_and_provenance(runs: Runs, name: str) -> None:
    ours, theirs = (
        json.loads((runs[n].checkpoint.path / "config.json").read_text())["quantization_config"]
        for n in (name, f"{name}-oracle")
    )
    ignored, their_ignored = set(ours.pop("ignore")), set(theirs.pop("ignore"))
    # It also lists the routers, for their class name; what is in them is listed by both.
    assert their_ignored - ignored == {f"model.language_model.layers.{i}.router" for i in (0, 1)}
    assert ignored - their_ignored == ({VALUES_READ_FROM_KEYS} if name == "experts-only" else set())
    groups, their_groups = ours["config_groups"].values(), theirs["config_groups"].values()
    assert [*groups][-1].pop("targets") == ["Linear"]
    for group in (*groups, *their_groups):
        group.pop("targets", None)
    for arguments in _arguments(groups, ours["kv_cache_scheme"]):
        assert (arguments.pop("observer"), arguments.pop("actorder")) == (None, None)
    for arguments in _arguments(their_groups, theirs["kv_cache_scheme"]):
        del arguments["observer"], arguments["actorder"]
    assert ours == theirs


def _arguments(groups: Iterable[dict[str, Any]], kv_cache: dict[str, Any] | None) -> list[dict[str, Any]]:
    found = [group[key] for group in groups for key in ("weights", "input_activations")]
    return [arguments for arguments in (*found, kv_cache) if arguments is not None]


def test_modules_of_weights_alone_are_a_group_by_name_with_the_values_read_from_keys(runs: Runs) -> None:
    config = json.loads((runs["mixed"].checkpoint.path / "config.json").read_text())["quantization_config"]
    attention = {name for name in runs["mixed"].artifact.manifest.quantized_modules if ".self_attn." in name}
    assert set(config["config_groups"]["group_0"]["targets"]) == attention | {VALUES_READ_FROM_KEYS}


def test_config_is_the_sources_but_for_the_quantization(runs: Runs) -> None:
    config = json.loads((runs["reference"].checkpoint.path / "config.json").read_text())
    del config["quantization_config"]
    assert config == runs.model.config


def test_ignored_modules_are_linears_that_stayed_as_they_were(runs: Runs) -> None:
    tensors = runs["experts-only"].checkpoint
    config = json.loads((tensors.path / "config.json").read_text())["quantization_config"]
    assert VALUES_READ_FROM_KEYS in config["ignore"]
    for module in set(config["ignore"]) - {"lm_head", VALUES_READ_FROM_KEYS}:
        assert equal_bytes(tensors.read(f"{module}.weight"), runs.model.read(f"{module}.weight"))
    assert {"self_attn.q_proj", "mlp.down_proj"} <= {".".join(m.split(".")[-2:]) for m in config["ignore"]}


@pytest.mark.parametrize("name", ["reference", "mse", "gptq"])
def test_codec_decodes_to_what_llmcompressors_model_computes_with(runs: Runs, name: str) -> None:
    """Its divisors hold 8 significant bits, so that BF16 rounds alike in both directions of the scale."""
    artifact, weights = runs[name].artifact, runs[f"{name}-oracle"].weights
    assert set(weights) == set(artifact.manifest.quantized_modules)
    for module, expected in weights.items():
        assert expected.dtype == torch.bfloat16
        assert torch.equal(artifact.weight(module).dequantize(torch.bfloat16), expected), module


def test_codec_under_its_policy_gives_llmcompressors_bytes(runs: Runs) -> None:
    """Round to nearest is explained to the last bit: its bytes from the source alone."""
    gemma, artifact = read_gemma4(runs.model), runs["reference"].artifact
    amax: dict[str, torch.Tensor] = {}
    for module in gemma.linears.values():
        largest = module.read(runs.model).abs().max()
        amax[module.scale_group] = torch.maximum(amax.get(module.scale_group, largest), largest)
    for name in artifact.manifest.quantized_modules:
        module = gemma.linears[name]
        expected = quantize(
            module.read(runs.model),
            global_amax=amax[module.scale_group],
            policy=BlockScalePolicy.COMPRESSED_TENSORS,
        )
        found = artifact.weight(name)
        assert equal_bytes(found.packed_weight, expected.packed_weight), name
        assert equal_bytes(found.block_scale, expected.block_scale), name
        assert torch.equal(found.global_scale, expected.global_scale), name


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("reference", "llmcompressor"),
        ("gptq", "gptq-linearized"),
        ("all-experts", "all-experts-linearized"),
    ],
)
def test_the_unfuser_does_not_matter(runs: Runs, one: str, other: str) -> None:
    assert runs[one].artifact.manifest.files == runs[other].artifact.manifest.files


@pytest.mark.parametrize("name", ["reference", "llmcompressor", "gptq", "autoround"])
def test_the_same_job_in_another_process_gives_equal_files(runs: Runs, second_runs: Runs, name: str) -> None:
    first, second = runs[name].artifact.manifest, second_runs[name].artifact.manifest
    assert first.files == second.files
    assert first == second


@pytest.mark.parametrize("name", ["reference", "expanded-mse", "gptq", "smoothquant", "awq", "autoround", "few"])
def test_scale_groups_share_both_scales(runs: Runs, name: str) -> None:
    groups = scales_by_group(runs[name].artifact, runs.model)
    assert {len(scales) for scales in groups.values()} == {1}


@pytest.mark.parametrize("name", ["reference", "smoothquant", "awq", "gptq", "autoround", "kv-fp8"])
def test_kept_tensors_equal_the_source(runs: Runs, name: str) -> None:
    gemma, tensors = read_gemma4(runs.model), runs[name].checkpoint
    for kept in gemma.kept:
        assert tensors.entry(kept).dtype == runs.model.entry(kept).dtype
        assert equal_bytes(tensors.read(kept), runs.model.read(kept)), kept
