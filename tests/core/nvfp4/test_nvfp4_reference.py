from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fourfold.nvfp4 import (
    BLOCK_SIZE,
    BlockScalePolicy,
    NVFP4Weight,
    dequantize,
    encode_e2m1,
    fake_quantize,
    fake_quantize_activations,
    global_scale_from_amax,
    quantize,
    unpack_codes,
)

POLICIES = list(BlockScalePolicy)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.02).to(dtype)


def same_bytes(one: NVFP4Weight, other: NVFP4Weight) -> bool:
    return (
        torch.equal(one.packed_weight, other.packed_weight)
        and torch.equal(one.block_scale.view(torch.uint8), other.block_scale.view(torch.uint8))
        and torch.equal(one.global_scale, other.global_scale)
    )


def test_equals_the_table_oracle_on_corners(oracle, weights):
    for name, weight in weights.items():
        packed, scale, global_scale = oracle.quantize(weight.to(torch.float32).numpy())
        ours = quantize(weight)
        assert np.array_equal(ours.block_scale.view(torch.uint8).numpy(), scale), name
        assert np.array_equal(ours.packed_weight.numpy(), packed), name
        assert ours.global_scale.item() == global_scale, name


@pytest.mark.parametrize("policy", POLICIES)
def test_relative_error_is_what_four_bits_allow(policy):
    weight = normal(64, 512, dtype=torch.bfloat16).to(torch.float32)
    error = (dequantize(quantize(weight, policy=policy)) - weight).norm() / weight.norm()
    assert 0.08 < error.item() < 0.10


@pytest.mark.parametrize("policy", POLICIES)
def test_batch_equals_one_matrix_at_a_time(policy):
    weight = normal(2, 3, 8, 64, dtype=torch.bfloat16)
    batched = quantize(weight, policy=policy)
    assert batched.shape == weight.shape
    assert batched.global_scale.shape == (2, 3)
    for i in range(2):
        for j in range(3):
            one = quantize(weight[i, j], policy=policy)
            part = NVFP4Weight(batched.packed_weight[i, j], batched.block_scale[i, j], batched.global_scale[i, j])
            assert same_bytes(one, part)


@pytest.mark.parametrize("policy", POLICIES)
def test_non_contiguous_input_and_unchanged_input(policy):
    weight = normal(64, 32).t()
    before = weight.clone()
    assert not weight.is_contiguous()
    assert same_bytes(quantize(weight, policy=policy), quantize(weight.contiguous(), policy=policy))
    assert torch.equal(weight, before)


@pytest.mark.parametrize("policy", POLICIES)
def test_half_precision_input_equals_its_float32_value_where_the_policy_is_float32(policy):
    weight = normal(64, 256, seed=7, dtype=torch.bfloat16)
    same = same_bytes(quantize(weight, policy=policy), quantize(weight.to(torch.float32), policy=policy))
    assert same is (policy is not BlockScalePolicy.COMPRESSED_TENSORS)


def test_group_amax_gives_a_shared_scale():
    gate, up = normal(16, 64, seed=1), normal(16, 64, seed=2) * 3
    amax = torch.maximum(gate.abs().max(), up.abs().max())
    for policy in POLICIES:
        shared = [quantize(part, global_amax=amax, policy=policy).global_scale for part in (gate, up)]
        assert shared[0] == shared[1] == global_scale_from_amax(amax, policy)
    by_scale = quantize(gate, global_scale=global_scale_from_amax(amax))
    assert same_bytes(by_scale, quantize(gate, global_amax=amax))


def test_given_block_scales_are_stored_and_used():
    weight = normal(16, 64)
    found = quantize(weight)
    doubled = (found.block_scale.to(torch.float32) / 2).to(torch.float8_e4m3fn)
    ours = quantize(weight, global_scale=found.global_scale, block_scale=doubled)
    assert torch.equal(ours.block_scale.view(torch.uint8), doubled.view(torch.uint8))
    step = doubled.to(torch.float32).repeat_interleave(BLOCK_SIZE, -1) * found.global_scale
    assert torch.equal(unpack_codes(ours.packed_weight), encode_e2m1(weight / step))


@pytest.mark.parametrize("policy", POLICIES)
def test_zero_block_decodes_to_zero_and_signed_zero_keeps_no_sign(policy):
    weight = normal(4, 64)
    weight[1, 16:32] = 0
    weight[2, :16] = -0.0
    decoded = dequantize(quantize(weight, policy=policy))
    assert decoded[1, 16:32].count_nonzero() == 0
    assert not decoded[2, :16].signbit().any()


def test_all_zero_tensor_is_refused_but_by_compressed_tensors_policy():
    zeros = torch.zeros(4, 32)
    for policy in (BlockScalePolicy.FOURFOLD, BlockScalePolicy.MODELOPT):
        with pytest.raises(ValueError, match=r"zero or subnormal global scale.*pass a global_scale"):
            quantize(zeros, policy=policy)
    stored = quantize(zeros, policy=BlockScalePolicy.COMPRESSED_TENSORS)
    assert (stored.global_scale.item(), stored.block_scale.to(torch.float32).unique().item()) == (1.0, 0.125)
    assert dequantize(quantize(zeros, global_scale=torch.tensor(0.5))).count_nonzero() == 0


def test_tiny_block_beside_an_outlier():
    """The floor of 2^-9 keeps what it can; compressed-tensors' 0.125 loses the block."""
    weight = torch.full((1, 32), 1e-6)
    weight[0, 16] = 1.0
    ours, theirs = quantize(weight), quantize(weight, policy=BlockScalePolicy.COMPRESSED_TENSORS)
    assert ours.block_scale.to(torch.float32).tolist() == [[2.0**-9, 448]]
    assert theirs.block_scale.to(torch.float32).tolist() == [[0.125, 448]]
    assert dequantize(ours)[0, 0].item() == pytest.approx(1.5 * 2.0**-9 / 2688, rel=1e-6)
    assert dequantize(theirs)[0, 0].item() == 0


@pytest.mark.parametrize(("outlier", "low", "high"), [(1e3, 0.08, 0.1), (1e4, 0.1, 0.3), (1e5, 0.4, 0.6)])
def test_one_huge_outlier(outlier, low, high):
    """It survives; the others lose only once their block scales leave E4M3's normal range."""
    weight = normal(8, 64)
    weight[0, 0] = outlier
    decoded = dequantize(quantize(weight))
    assert decoded[0, 0].item() == pytest.approx(outlier, rel=1e-6)
    rest = (decoded[1:] - weight[1:]).norm() / weight[1:].norm()
    assert low < rest.item() < high


@st.composite
def finite_weights(draw: st.DrawFn) -> torch.Tensor:
    values = draw(st.lists(st.floats(-1e4, 1e4, width=32), min_size=32, max_size=32))
    weight = torch.tensor(values).reshape(2, 16)
    assume(weight.abs().max() > 2.0**-100)
    return weight


@settings(deadline=None)
@given(finite_weights())
def test_error_is_within_one_step_unless_saturated(weight):
    """The widest gap of the grid is 2 steps; over 6 steps a value saturates (a rounded-down block scale)."""
    stored = quantize(weight)
    step = (stored.block_scale.to(torch.float32) * stored.global_scale).repeat_interleave(BLOCK_SIZE, -1)
    error = (dequantize(stored) - weight).abs()
    allowed = torch.maximum(step, weight.abs() - 6 * step)
    assert bool((error <= allowed * (1 + 1e-6)).all())


@settings(deadline=None)
@given(finite_weights())
def test_quantizing_the_decoded_weight_again_changes_no_value(weight):
    once = quantize(weight)
    twice = quantize(dequantize(once), global_scale=once.global_scale, block_scale=once.block_scale)
    assert torch.equal(dequantize(twice), dequantize(once))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_fake_quantize_is_decode_of_quantize(dtype):
    weight = normal(8, 64, dtype=dtype)
    fake = fake_quantize(weight, policy=BlockScalePolicy.MODELOPT)
    assert fake.dtype == dtype
    assert torch.equal(fake, quantize(weight, policy=BlockScalePolicy.MODELOPT).dequantize(dtype))


def numpy_activation_rule(oracle, x: np.ndarray, scale: np.float32) -> np.ndarray:
    one = np.float32(1)
    r = one / scale
    blocks = x.astype(np.float32).reshape(x.shape[0], -1, 16)
    amax = np.abs(blocks).max(-1, keepdims=True)
    s = oracle.e4m3[oracle._nearest(np.minimum(r * (amax * (one / np.float32(6))), 448), oracle.e4m3)]
    s = s.astype(np.float32)
    with np.errstate(divide="ignore"):
        encode = np.where(s == 0, np.float32(0), one / (s * (one / r)))
    codes = oracle.encode(np.clip(blocks * encode, -6, 6))
    values = (oracle.e2m1[codes % 8] * np.where(codes >= 8, -1, 1)).astype(np.float32)
    return (values * (s / r)).reshape(x.shape)


def test_activation_rule_equals_the_table_oracle(oracle):
    x = normal(64, 256, seed=3) * torch.logspace(-6, 2, 64)[:, None]
    scale = np.float32(3.3e-5)
    ours = fake_quantize_activations(x, torch.tensor(scale))
    assert np.array_equal(ours.numpy(), numpy_activation_rule(oracle, x.numpy(), scale))
    assert ours[0].count_nonzero() == 0  # tiny blocks flush to zero
    assert ours[-1].abs().max().item() <= 6 * 448 * scale * 1.0001  # over the calibrated amax: saturated


def test_activations_keep_shape_and_dtype():
    x = normal(2, 3, 32, dtype=torch.bfloat16)
    out = fake_quantize_activations(x, torch.tensor([1e-4]))
    assert (out.shape, out.dtype) == (x.shape, x.dtype)
    assert 0.05 < ((out.float() - x.float()).norm() / x.float().norm()).item() < 0.15


@pytest.mark.parametrize("shape", [(4, 24), (4, 17), (3, 4, 8)])
def test_width_not_a_multiple_of_16_is_refused(shape):
    with pytest.raises(ValueError, match="the last axis must be a multiple of 16"):
        quantize(torch.ones(shape))
    with pytest.raises(ValueError, match="the last axis must be a multiple of 16"):
        fake_quantize_activations(torch.ones(shape), torch.ones(()))


@pytest.mark.parametrize("shape", [(0, 16), (4, 0), (0, 4, 16)])
def test_empty_is_refused(shape):
    with pytest.raises(ValueError, match=r"weight of shape .* is empty"):
        quantize(torch.ones(shape))


def test_a_vector_is_refused():
    with pytest.raises(ValueError, match=r"weight has shape \[16\]; expected \[..., O, K\]"):
        quantize(torch.ones(16))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("policy", POLICIES)
def test_nan_and_infinity_are_refused(bad, policy):
    weight = normal(4, 32)
    weight[2, 5] = bad
    with pytest.raises(ValueError, match=r"weight of shape \[4, 32\] holds NaN or infinity"):
        quantize(weight, policy=policy)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int8, torch.float8_e4m3fn])
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(TypeError, match=f"weight must be float32, bfloat16 or float16, not {dtype}"):
        quantize(torch.ones(4, 32).to(dtype))


def test_contradicting_scales_are_refused():
    weight, one = normal(4, 32), torch.ones(())
    block_scale = quantize(weight).block_scale
    with pytest.raises(ValueError, match="give global_scale or global_amax, not both"):
        quantize(weight, global_scale=one, global_amax=one)
    with pytest.raises(ValueError, match="block_scale needs the global_scale"):
        quantize(weight, block_scale=block_scale)
    with pytest.raises(ValueError, match=r"block_scale has shape \[2, 2\]; the weight needs \[4, 2\]"):
        quantize(weight, global_scale=one, block_scale=block_scale[:2])
    with pytest.raises(TypeError, match=r"block_scale must be torch.float8_e4m3fn, not torch.float32"):
        quantize(weight, global_scale=one, block_scale=block_scale.to(torch.float32))
    with pytest.raises(ValueError, match="block_scale holds zero, negative or NaN scales"):
        quantize(weight, global_scale=one, block_scale=torch.zeros(4, 2).to(torch.float8_e4m3fn))
    with pytest.raises(ValueError, match=r"global_scale has shape \[4\]; weight \[4, 32\] needs \[\] or \[\]"):
        quantize(weight, global_scale=torch.ones(4))
    with pytest.raises(ValueError, match="the global scale is too small"):
        quantize(weight, global_scale=torch.tensor(1e-9))


def test_input_global_scale_is_checked():
    with pytest.raises(ValueError, match="input_global_scale must be positive and finite, found 0"):
        fake_quantize_activations(torch.ones(1, 16), torch.zeros(()))
    with pytest.raises(ValueError, match=r"input_global_scale must be one number, not of shape \[2\]"):
        fake_quantize_activations(torch.ones(1, 16), torch.ones(2))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("policy", [BlockScalePolicy.FOURFOLD, BlockScalePolicy.COMPRESSED_TENSORS])
def test_cuda_equals_cpu(weights, policy):
    for name, weight in weights.items():
        there = quantize(weight.cuda(), policy=policy)
        back = NVFP4Weight(there.packed_weight.cpu(), there.block_scale.cpu(), there.global_scale.cpu())
        here = quantize(weight, policy=policy)
        assert same_bytes(back, here), name
        assert torch.equal(there.dequantize().cpu(), here.dequantize()), name
        scale = here.global_scale * 0.5
        assert torch.equal(
            fake_quantize_activations(weight.cuda(), scale.cuda()).cpu(),
            fake_quantize_activations(weight, scale),
        ), name
