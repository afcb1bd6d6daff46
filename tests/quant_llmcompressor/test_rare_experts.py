"""Experts with too few tokens: what is counted, what is filled in, what llm-compressor would have done."""

from __future__ import annotations

import pytest
import torch

from fourfold.models.gemma4 import read_gemma4

from .conftest import Result, Runs

LAYERS = ("model.language_model.layers.0.experts", "model.language_model.layers.1.experts")


def unseen(result: Result) -> dict[str, int]:
    """Expert linears without tokens, and which expert."""
    counts = result.artifact.manifest.expert_token_counts
    return {
        name: int(name.split(".")[5])
        for name in result.artifact.manifest.quantized_modules
        if ".experts." in name and counts[name.rsplit(".", 2)[0]][int(name.split(".")[5])] == 0
    }


@pytest.mark.parametrize(
    ("name", "num_tokens"), [("reference", 512), ("llmcompressor", 512), ("gptq", 512), ("autoround", 512),
                             ("mse", 512), ("few", 8), ("padded", 112), ("padded-gptq", 112)]
)  # fmt: skip
def test_every_real_token_is_counted_once_for_each_of_its_experts(runs: Runs, name: str, num_tokens: int) -> None:
    counts = runs[name].artifact.manifest.expert_token_counts
    assert tuple(counts) == LAYERS
    assert {sum(by_expert) for by_expert in counts.values()} == {4 * num_tokens}
    assert {len(by_expert) for by_expert in counts.values()} == {16}


def test_counts_are_the_routers(runs: Runs) -> None:
    assert (
        runs["reference"].artifact.manifest.expert_token_counts
        == runs["llmcompressor"].artifact.manifest.expert_token_counts
    )


@pytest.mark.parametrize("name", ["few", "few-linearized", "few-gptq"])
def test_layer_max_gives_an_unseen_expert_the_largest_scale_of_its_layer_and_names_it(runs: Runs, name: str) -> None:
    artifact, rare = runs[name].artifact, unseen(runs[name])
    assert rare
    assert {f.module for f in artifact.manifest.fallbacks if f.rule == "layer-max"} == set(rare)
    for module in rare:
        layer, side = module.split(".experts.")[0], module.endswith("down_proj")
        others = [
            float(artifact.input_global_scale(other))
            for other in artifact.manifest.quantized_modules
            if other.startswith(f"{layer}.experts.") and other.endswith("down_proj") is side and other not in rare
        ]
        assert float(artifact.input_global_scale(module)) == max(others)


def test_the_unfuser_does_not_matter_for_rare_experts(runs: Runs) -> None:
    assert runs["few"].artifact.manifest.files == runs["few-linearized"].artifact.manifest.files


def test_all_experts_calibration_leaves_no_expert_rare(runs: Runs) -> None:
    result = runs["few-all-experts"]
    assert unseen(result)
    assert result.artifact.manifest.fallbacks == ()


def test_gptq_alone_stores_zeros_for_an_unseen_expert(runs: Runs) -> None:
    """The reason for our fallback: a fault of llm-compressor 0.14; if it is cured, this says so."""
    weights = runs["few-gptq-oracle"].weights
    rare = unseen(runs["few-gptq"])
    assert rare
    assert all(not weights[module].any() for module in rare)


def test_gptq_rounds_an_unseen_expert_to_nearest_and_names_it(runs: Runs) -> None:
    gptq, nearest = runs["few-gptq"].artifact, runs["few"].artifact
    rare = unseen(runs["few-gptq"])
    assert {f.module for f in gptq.manifest.fallbacks if f.rule == "round-to-nearest"} == set(rare)
    for module in rare:
        found, expected = gptq.weight(module), nearest.weight(module)
        assert torch.equal(found.packed_weight, expected.packed_weight), module
        assert torch.equal(found.block_scale.view(torch.uint8), expected.block_scale.view(torch.uint8)), module
        assert torch.equal(found.global_scale, expected.global_scale), module


def test_importance_of_an_unseen_expert_is_uniform_and_named(runs: Runs) -> None:
    artifact, rare = runs["few-imatrix"].artifact, unseen(runs["few-imatrix"])
    assert {f.module for f in artifact.manifest.fallbacks if f.rule == "uniform-mse"} == set(rare)


def test_a_raised_threshold_changes_input_scales_alone_and_names_them(runs: Runs) -> None:
    raised, plain = runs["threshold"].artifact, runs["reference"].artifact
    counts = raised.manifest.expert_token_counts
    named = set(raised.manifest.rare_modules)
    assert named
    for module in read_gemma4(runs.model).linears.values():
        rare = module.expert is not None and counts[module.tensor.rsplit(".", 1)[0]][module.expert] < 100
        assert (module.name in named) is rare
        assert torch.equal(raised.weight(module.name).packed_weight, plain.weight(module.name).packed_weight)
        if not rare:
            assert torch.equal(raised.input_global_scale(module.name), plain.input_global_scale(module.name))


def test_fallbacks_say_how_many_tokens_there_were(runs: Runs) -> None:
    details = {f.detail for f in runs["few"].artifact.manifest.fallbacks}
    assert details == {"0 calibration tokens; its input scale is its layer's others' largest"}


def test_scales_of_one_for_zeros_are_named(runs: Runs) -> None:
    """An all-zero expert: llm-compressor stores 1 for its weights, and for the zeros it hands on."""
    artifact = runs["zero-expert"].artifact
    expert = "model.language_model.layers.1.experts.7"
    found = {(f.module, f.detail.split()[4]) for f in artifact.manifest.fallbacks if f.rule == "scale-one"}
    assert found == {
        (f"{expert}.gate_proj", "weights"),
        (f"{expert}.up_proj", "weights"),
        (f"{expert}.down_proj", "inputs"),
    }
    assert artifact.weight(f"{expert}.gate_proj").global_scale == 1
    assert not artifact.weight(f"{expert}.gate_proj").dequantize().any()
    assert artifact.input_global_scale(f"{expert}.down_proj") == 1
