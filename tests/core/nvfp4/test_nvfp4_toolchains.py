"""The codec against the toolchains' own public code, in their own environments, to the bit."""

from __future__ import annotations

import pytest
import torch

from fourfold.nvfp4 import BlockScalePolicy, encode_scale_from_amax, quantize


@pytest.fixture(scope="module")
def modelopt(run_in_environment, weights):
    return run_in_environment("modelopt", "oracle_modelopt.py", weights)


@pytest.fixture(scope="module")
def compressed_tensors(run_in_environment, weights):
    zeros = {
        f"{name}.zeros": torch.zeros(4, 32, dtype=weights[f"{name}.normal"].dtype) for name in ("float32", "bfloat16")
    }
    return run_in_environment("llmcompressor", "oracle_compressed_tensors.py", weights | zeros)


def test_modelopt_policy_reproduces_modelopt(modelopt, weights):
    for name, weight in weights.items():
        ours = quantize(weight, policy=BlockScalePolicy.MODELOPT)
        assert torch.equal(ours.global_scale, modelopt[f"{name}/global_scale"]), name
        assert torch.equal(ours.block_scale.view(torch.uint8), modelopt[f"{name}/block_scale"].view(torch.uint8)), name
        assert torch.equal(ours.packed_weight, modelopt[f"{name}/packed_weight"]), name


def test_decode_equals_modelopts_to_the_bit(modelopt, weights):
    for name, weight in weights.items():
        ours = quantize(weight, policy=BlockScalePolicy.MODELOPT).dequantize()
        # ModelOpt's table decodes code 8 to +0.0: equal as a number, not in the sign bit
        assert torch.equal(ours, modelopt[f"{name}/decoded"]), name


def test_our_policy_stores_what_modelopt_stores(modelopt, weights):
    for name, weight in weights.items():
        ours = quantize(weight)
        assert torch.equal(ours.packed_weight, modelopt[f"{name}/packed_weight"]), name


def test_compressed_tensors_policy_reproduces_it(compressed_tensors, weights):
    zeros = {name.split("/")[0]: torch.zeros(4, 32) for name in compressed_tensors if ".zeros/" in name}
    assert len(zeros) == 2
    for name, weight in (weights | {n: z.to(getattr(torch, n.split(".")[0])) for n, z in zeros.items()}).items():
        ours = quantize(weight, policy=BlockScalePolicy.COMPRESSED_TENSORS)
        encode_scale = encode_scale_from_amax(weight.abs().max())
        assert torch.equal(encode_scale, compressed_tensors[f"{name}/encode_scale"]), name
        assert torch.equal(
            ours.block_scale.view(torch.uint8), compressed_tensors[f"{name}/block_scale"].view(torch.uint8)
        ), name
        assert torch.equal(ours.packed_weight, compressed_tensors[f"{name}/packed_weight"]), name


def test_decode_equals_compressed_tensors_to_its_bfloat16(compressed_tensors, weights):
    """Its decompressor rounds to BF16 and divides by the reciprocal: at most one BF16 ulp apart."""
    for name, weight in weights.items():
        ours = quantize(weight, policy=BlockScalePolicy.COMPRESSED_TENSORS).dequantize()
        theirs = compressed_tensors[f"{name}/decoded"]
        assert bool(((ours - theirs).abs() <= ours.abs() * 2.0**-8).all()), name


def test_the_two_toolchains_differ_where_the_table_says(modelopt, compressed_tensors):
    """In BF16 and float16, by the global scale's rounding; in float32 hardly; on exact ties not at all."""

    def differing_blocks(name: str) -> float:
        one, other = (r[f"{name}/block_scale"].view(torch.uint8) for r in (modelopt, compressed_tensors))
        return (one != other).to(torch.float64).mean().item()

    assert differing_blocks("bfloat16.normal") > 0.01
    assert differing_blocks("float32.normal") < 0.001
    for dtype in ("float32", "bfloat16", "float16"):
        assert differing_blocks(f"{dtype}.ties") == 0
