from __future__ import annotations

import pytest
import torch

from fourfold.nvfp4 import (
    E4M3_MAX,
    E4M3_MIN_SUBNORMAL,
    BlockScalePolicy,
    block_scale_from_amax,
    check_global_scale,
    encode_scale_from_amax,
    global_scale_from_amax,
)

FOURFOLD, MODELOPT, COMPRESSED_TENSORS = BlockScalePolicy
ONE = torch.ones(())


def block_scale(amax: float, policy: BlockScalePolicy, dtype: torch.dtype = torch.float32) -> float:
    scale = block_scale_from_amax(torch.tensor([amax], dtype=dtype), ONE, policy)
    assert scale.dtype == torch.float8_e4m3fn
    return scale.to(torch.float32).item()


@pytest.mark.parametrize("policy", [FOURFOLD, MODELOPT])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_global_scale_maps_the_largest_block_to_448(policy, dtype):
    scale = global_scale_from_amax(torch.tensor([2688.0, 1.0], dtype=dtype), policy)
    assert scale.dtype == torch.float32
    assert scale.tolist() == [1.0, torch.tensor(1 / 2688, dtype=torch.float32).item()]


def test_compressed_tensors_rounds_the_global_scale_in_the_amax_dtype():
    amax = torch.tensor(0.0371, dtype=torch.bfloat16)
    assert encode_scale_from_amax(amax).item() == 72704  # 2688 / amax is 72434.5
    assert encode_scale_from_amax(amax.to(torch.float32)).item() == pytest.approx(72434.53, abs=0.01)
    scale = global_scale_from_amax(amax, COMPRESSED_TENSORS)
    assert scale.dtype == torch.float32
    assert scale.item() == torch.tensor(72704.0).reciprocal().item()


def test_bfloat16_moves_compressed_tensors_global_scale_by_up_to_0_6_percent():
    amax = (1 + torch.arange(128) / 128).to(torch.bfloat16)
    ratio = global_scale_from_amax(amax, COMPRESSED_TENSORS) / global_scale_from_amax(amax, FOURFOLD)
    assert 0.005 < (ratio - 1).abs().max().item() < 0.0065


def test_float32_reciprocals_do_not_always_invert():
    """Why a group's amax, and not its global scale, is what reproduces compressed-tensors exactly."""
    mantissas = 1 + torch.arange(1 << 23, dtype=torch.float32) / (1 << 23)
    share = (mantissas.reciprocal().reciprocal() != mantissas).to(torch.float64).mean().item()
    assert share == pytest.approx(0.1716, abs=0.0005)


@pytest.mark.parametrize("policy", list(BlockScalePolicy))
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0])
def test_amax_that_is_no_amax_is_refused(policy, bad):
    with pytest.raises(ValueError, match=f"amax must be finite and not negative, found {bad:g}"):
        global_scale_from_amax(torch.tensor([1.0, bad]), policy)
    with pytest.raises(ValueError, match=f"block_amax must be finite and not negative, found {bad:g}"):
        block_scale_from_amax(torch.tensor([1.0, bad]), ONE, policy)


@pytest.mark.parametrize("policy", [FOURFOLD, MODELOPT])
@pytest.mark.parametrize("amax", [0.0, 2.0**-126])
def test_amax_too_small_for_a_global_scale_is_refused(policy, amax):
    with pytest.raises(ValueError, match=r"gives a zero or subnormal global scale.*pass a global_scale or the amax"):
        global_scale_from_amax(torch.tensor(amax), policy)


@pytest.mark.parametrize(("amax", "dtype"), [(0.0, torch.bfloat16), (0.0, torch.float32), (0.01, torch.float16)])
def test_compressed_tensors_replaces_an_overflowing_encode_scale_by_one(amax, dtype):
    assert global_scale_from_amax(torch.tensor(amax, dtype=dtype), COMPRESSED_TENSORS).item() == 1


@pytest.mark.parametrize("function", [global_scale_from_amax, encode_scale_from_amax])
def test_amax_dtype_and_emptiness_are_checked(function):
    with pytest.raises(TypeError, match=r"amax must be float32, bfloat16 or float16, not torch.float64"):
        function(torch.ones(1, dtype=torch.float64))
    with pytest.raises(ValueError, match="amax is empty"):
        function(torch.ones(0))


@pytest.mark.parametrize(("policy", "stored"), [(FOURFOLD, 1.0), (MODELOPT, 1.0), (COMPRESSED_TENSORS, 0.125)])
def test_zero_block(policy, stored):
    assert block_scale(0.0, policy) == stored


@pytest.mark.parametrize("ratio", [2.0**-10, 2.0**-12, 2.0**-30])
@pytest.mark.parametrize(("policy", "stored"), [(FOURFOLD, 2.0**-9), (MODELOPT, 2.0**-9), (COMPRESSED_TENSORS, 0.125)])
def test_tiny_block_whose_scale_would_round_to_zero(policy, stored, ratio):
    """2^-10 is the tie between 0 and 2^-9; it goes to 0, the even code."""
    assert block_scale(6 * ratio, policy) == stored


@pytest.mark.parametrize("policy", list(BlockScalePolicy))
@pytest.mark.parametrize("scale", [E4M3_MIN_SUBNORMAL, 3 * E4M3_MIN_SUBNORMAL, 2.0**-6, 1.0, 240.0, E4M3_MAX])
def test_representable_scales_are_kept(policy, scale):
    assert block_scale(6 * scale, policy) == scale


@pytest.mark.parametrize("policy", list(BlockScalePolicy))
@pytest.mark.parametrize(("ratio", "stored"), [(1.0625, 1.0), (1.1875, 1.25), (17.0, 16.0), (464.0, 448.0)])
def test_scale_ties_go_to_the_even_code(policy, ratio, stored):
    assert block_scale(6 * ratio, policy) == stored


@pytest.mark.parametrize("policy", [MODELOPT, COMPRESSED_TENSORS])
def test_overflow_saturates_where_the_toolchain_saturates(policy):
    assert block_scale(6 * 1000.0, policy) == E4M3_MAX


def test_overflow_is_refused_by_ours():
    with pytest.raises(ValueError, match=r"a block with amax 6000 needs block scale 1000, over 448.*scale group"):
        block_scale(6 * 1000.0, FOURFOLD)


def test_compressed_tensors_divides_in_the_amax_dtype():
    """In BF16 the quotient amax / 6 is rounded before the global scale enters; in float32 hardly."""
    amax = torch.linspace(1, 2, 129)[:-1].to(torch.bfloat16)
    encode = torch.tensor(100.3)
    narrow = block_scale_from_amax(amax, encode.reciprocal(), COMPRESSED_TENSORS, encode_scale=encode)
    wide = block_scale_from_amax(amax.to(torch.float32), encode.reciprocal(), COMPRESSED_TENSORS, encode_scale=encode)
    expected = (encode * (amax / 6).to(torch.float32)).to(torch.float8_e4m3fn)
    assert torch.equal(narrow.view(torch.uint8), expected.view(torch.uint8))
    assert not torch.equal(narrow.view(torch.uint8), wide.view(torch.uint8))


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_global_scale_must_be_positive_and_finite(bad):
    with pytest.raises(ValueError, match=f"input_global_scale must be positive and finite, found {bad:g}"):
        check_global_scale(torch.tensor([1.0, bad]), "input_global_scale")
    with pytest.raises(ValueError, match=f"global_scale must be positive and finite, found {bad:g}"):
        block_scale_from_amax(torch.ones(2), torch.tensor([1.0, bad]))


def test_global_scale_must_be_float32():
    with pytest.raises(TypeError, match=r"global_scale must be float32, not torch.bfloat16"):
        check_global_scale(torch.ones((), dtype=torch.bfloat16))
