"""Experts that too few tokens reached: counted, named, and given their layer's largest input scale."""

from __future__ import annotations

import pytest
import torch

from .conftest import Runs
from .jobs import ENOUGH, TOO_FEW

TOP_K = 4


@pytest.mark.parametrize(
    ("name", "tokens"),
    [("reference", ENOUGH), ("modelopt", ENOUGH), ("gptq", ENOUGH), ("modelopt-few", TOO_FEW)],
)
def test_every_routed_token_is_counted_once(runs: Runs, name: str, tokens: tuple[int, int]) -> None:
    num_batches, length = tokens
    counts = runs[name].artifact.manifest.expert_token_counts
    assert list(counts) == [f"model.language_model.layers.{layer}.experts" for layer in range(2)]
    assert {sum(layer) for layer in counts.values()} == {2 * num_batches * length * TOP_K}


def test_both_unfusers_route_alike(runs: Runs) -> None:
    assert (
        runs["reference"].artifact.manifest.expert_token_counts
        == runs["modelopt"].artifact.manifest.expert_token_counts
    )


@pytest.mark.parametrize("name", ["reference-few", "modelopt-few", "awq-clip-few"])
def test_uncovered_experts_are_named_and_no_others(runs: Runs, name: str) -> None:
    manifest = runs[name].artifact.manifest
    expected = {
        f"{experts}.{expert}.{projection}"
        for experts, counts in manifest.expert_token_counts.items()
        for expert, count in enumerate(counts)
        if count == 0
        for projection in ("gate_proj", "up_proj", "down_proj")
    }
    assert expected
    assert {f.module for f in manifest.fallbacks if f.rule == "layer-max"} == expected


def test_gptq_also_names_experts_that_only_quantized_layers_missed(runs: Runs) -> None:
    """Its later layers see quantized ones, and route otherwise than the counted BF16 model."""
    named = {f.module for f in runs["gptq-few"].artifact.manifest.fallbacks if f.rule == "layer-max"}
    uncovered = {f.module for f in runs["reference-few"].artifact.manifest.fallbacks}
    assert uncovered < named


@pytest.mark.parametrize(
    ("name", "rule"),
    [("gptq-few", "round-to-nearest"), ("awq-clip-few", "max"), ("local-hessian-few", "plain-mse")],
)
def test_weights_without_inputs_are_named_too(runs: Runs, name: str, rule: str) -> None:
    """Such an expert's weights are those of the algorithm that reads no inputs."""
    named = [f.module for f in runs[name].artifact.manifest.fallbacks if f.rule == rule]
    assert named
    assert all(".experts." in module for module in named)
    plain_run = runs["mse" if rule == "plain-mse" else "reference-few"]
    for module in named:
        ours, plain = (run.artifact.weight(module) for run in (runs[name], plain_run))
        assert torch.equal(ours.global_scale, plain.global_scale), module
        # ModelOpt computes static block scales (GPTQ) and dynamic ones (max) in different orders: ties may part.
        assert (ours.dequantize() == plain.dequantize()).float().mean() > 0.99, module


def test_layer_max_is_the_largest_of_the_covered_experts(runs: Runs) -> None:
    artifact = runs["reference-few"].artifact
    counts = artifact.manifest.expert_token_counts["model.language_model.layers.0.experts"]
    scales = [
        artifact.input_global_scale(f"model.language_model.layers.0.experts.{e}.down_proj") for e in range(len(counts))
    ]
    covered = max(s for s, count in zip(scales, counts, strict=True) if count and s is not None)
    assert all(s == covered for s, count in zip(scales, counts, strict=True) if not count)


def test_enough_tokens_mean_no_fallback(runs: Runs) -> None:
    assert runs["reference"].artifact.manifest.fallbacks == ()


def test_weights_alone_need_no_tokens(runs: Runs) -> None:
    manifest = runs["w4a16"].artifact.manifest
    assert manifest.expert_token_counts == {}
    assert manifest.fallbacks == ()
