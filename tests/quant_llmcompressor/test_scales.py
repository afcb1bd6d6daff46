"""Directions: divisors that no reciprocal gives back, and observed activations."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from fourfold.artifact import ENCODE_SCALES

from .conftest import Runs


def significant_bits(value: torch.Tensor) -> int:
    """Bits of a float32's mantissa from the leading one to the last one."""
    mantissa = (value.view(torch.int32).item() & 0x7FFFFF) | 0x800000
    return 24 - ((mantissa & -mantissa).bit_length() - 1)


def test_llmcompressors_divisors_hold_eight_bits(runs: Runs) -> None:
    """It divides in the weight's BF16; AutoRound alone divides in float32."""
    for name, most in (("reference", 8), ("gptq", 8), ("autoround", 24)):
        checkpoint = runs[name].checkpoint
        scales = [checkpoint.read(e.name) for e in checkpoint if e.name.endswith("weight_global_scale")]
        assert max(map(significant_bits, scales)) in range(9) if most == 8 else range(9, 25)


def test_a_fifth_of_all_bf16_divisors_is_no_reciprocal() -> None:
    """Enumerated: for 26 of 128 mantissas no float32 has the divisor as its float32 reciprocal."""
    divisors = 1 + torch.arange(128, dtype=torch.float32) / 128
    nearest = divisors.reciprocal()
    neighbours = torch.stack(
        [nearest, torch.nextafter(nearest, torch.tensor(0.0)), torch.nextafter(nearest, torch.tensor(2.0))]
    )
    reachable = (neighbours.reciprocal() == divisors).any(0)
    assert int((~reachable).sum()) == 26
    assert torch.equal(reachable, nearest.reciprocal() == divisors)


def test_divisors_are_kept_exactly_where_they_are_no_reciprocal(runs: Runs) -> None:
    artifact, checkpoint = runs["reference"].artifact, runs["reference-oracle"].checkpoint
    stored = {"global_scale": "weight_global_scale", "input_global_scale": "input_global_scale"}
    kept = 0
    for module in artifact.manifest.quantized_modules:
        for canonical, theirs in stored.items():
            divisor = checkpoint.read(f"{module}.{theirs}").reshape(())
            scale = artifact.tensors.read(f"{module}.{canonical}")
            side = f"{module}.{ENCODE_SCALES[canonical]}"
            assert torch.equal(scale, divisor.reciprocal())
            assert (side in artifact.tensors) is not torch.equal(scale.reciprocal(), divisor)
            if side in artifact.tensors:
                assert torch.equal(artifact.tensors.read(side), divisor)
                kept += 1
    assert kept > 0


def test_input_scales_are_the_largest_activations_of_the_same_tokens(runs: Runs) -> None:
    """To its rounding: 1/amax, then 2688 times that, both in BF16."""
    amax = load_file(runs["inputs"].folder / "amax.safetensors")
    artifact = runs["reference"].artifact
    for module in artifact.manifest.quantized_modules:
        divisor = amax[module].to(torch.bfloat16).reciprocal() * 2688.0
        assert torch.equal(artifact.input_global_scale(module), divisor.float().reciprocal()), module


@pytest.mark.parametrize("name", ["all-experts", "all-experts-linearized"])
def test_all_experts_calibration_shows_every_expert_the_layers_largest_input(runs: Runs, name: str) -> None:
    routed, every = runs["reference"].artifact, runs[name].artifact
    gates = [m for m in every.manifest.quantized_modules if ".layers.0.experts." in m and "gate_proj" in m]
    largest = max(float(routed.input_global_scale(m)) for m in gates)
    assert len(gates) == 16
    assert {float(every.input_global_scale(m)) for m in gates} == {largest}
    assert len({float(routed.input_global_scale(m)) for m in gates}) > 1
    assert every.manifest.expert_token_counts == routed.manifest.expert_token_counts
