"""The error bounds: what rounding can do stays under them, what faults do does not."""

from __future__ import annotations

import pytest
import torch

from fourfold.nvfp4 import NVFP4Weight, block_amax, quantize
from fourfold.verify.fit import (
    MAX_BLOCK_ERROR,
    MAX_TENSOR_ERROR,
    MIN_NEAREST_SHARE,
    Fit,
    _pieces,
    compare,
    nearest_share,
)


def fit(weight: NVFP4Weight, source: torch.Tensor) -> Fit:
    result = compare(weight, source)
    assert result is not None
    return result


def weights(kind: str) -> torch.Tensor:
    torch.manual_seed(0)
    base = torch.randn(96, 256)
    return {
        "gaussian": base * 0.02,
        "uniform": torch.rand(96, 256) - 0.5,
        "laplace": torch.distributions.Laplace(0.0, 1.0).sample((96, 256)),
        "student": torch.distributions.StudentT(3.0).sample((96, 256)),
        "one outlier": base.index_put((torch.tensor(5), torch.tensor(7)), torch.tensor(900.0)),
        "rows of many sizes": base * torch.logspace(-3, 1, 96).unsqueeze(1),
        "columns of many sizes": base * torch.logspace(-3, 1, 256),
        "sparse": base * (torch.rand(96, 256) > 0.95),
        # Fifteen values at 5 beside one at 6: the worst block there is for rounding to the nearest.
        "adversarial": torch.tensor([6.0] + [5.0] * 15).repeat(96, 16),
        "adversarial small": torch.tensor([6.0] + [0.2499] * 15).repeat(96, 16),
    }[kind].to(torch.bfloat16)


KINDS = (
    "gaussian", "uniform", "laplace", "student", "one outlier", "rows of many sizes", "columns of many sizes", "sparse",
    "adversarial", "adversarial small",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_rounding_stays_under_both_bounds(kind: str) -> None:
    source = weights(kind)
    result = fit(quantize(source), source)
    assert result.error <= MAX_TENSOR_ERROR
    assert result.num_bad_blocks == 0
    assert result.worst[2] <= MAX_BLOCK_ERROR


def test_adversarial_block_is_as_bad_as_derived() -> None:
    source = weights("adversarial")
    assert fit(quantize(source), source).error == pytest.approx((15 / (36 + 15 * 25)) ** 0.5, rel=0.02)


def test_gaussian_weights_give_the_known_error() -> None:
    source = weights("gaussian")
    assert fit(quantize(source), source).error == pytest.approx(0.095, abs=0.005)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_of_a_quarter_of_amax_stays_under_the_bounds(kind: str) -> None:
    """Four-over-six may map a block's largest value to 4 wherever that has the smaller error."""
    source = weights(kind)
    plain = quantize(source)
    wide = (block_amax(source).float() / (4 * plain.global_scale)).clamp(2**-9, 448).to(torch.float8_e4m3fn)
    other = quantize(source, global_scale=plain.global_scale, block_scale=wide)
    errors = [(w.dequantize() - source.float()).view(96, -1, 16).square().sum(-1) for w in (plain, other)]
    better = (errors[1] < errors[0]).unsqueeze(-1)
    scale = torch.where(better[..., 0], other.block_scale.float(), plain.block_scale.float()).to(torch.float8_e4m3fn)
    result = fit(quantize(source, global_scale=plain.global_scale, block_scale=scale), source)
    assert result.error <= MAX_TENSOR_ERROR
    assert result.num_bad_blocks == 0


def test_error_feedback_is_told_from_nearest_rounding() -> None:
    """GPTQ's moves: each column's error is pushed to the next ones, as with a correlated Hessian."""
    source = weights("gaussian").float()
    plain = quantize(source)
    assert nearest_share(plain, source) > MIN_NEAREST_SHARE
    moved = source.clone()
    for column in range(255):
        error = moved[:, column] - quantize(moved, global_scale=plain.global_scale * 2).dequantize()[:, column]
        moved[:, column + 1] += 0.4 * error
    feedback = quantize(moved, global_scale=plain.global_scale * 2)
    assert nearest_share(feedback, source) < MIN_NEAREST_SHARE
    assert fit(feedback, source).error <= MAX_TENSOR_ERROR


def test_table_decodes_as_the_codec_does() -> None:
    torch.manual_seed(1)
    packed = torch.arange(256, dtype=torch.uint8).repeat(24).reshape(48, 128)
    scale = (torch.rand(48, 16) * 448).to(torch.float8_e4m3fn)
    weight = NVFP4Weight(packed, scale, torch.tensor(3.3e-5))
    decoded = torch.cat([piece for piece, _ in _pieces(weight, torch.zeros(48, 256))]).view(48, 256)
    assert torch.equal(decoded, weight.dequantize())


def test_zero_source_must_decode_to_zero() -> None:
    zeros = torch.zeros(16, 32)
    assert fit(quantize(weights("gaussian")[:16, :32]), zeros).error == float("inf")
    weight = quantize(weights("gaussian")[:16, :32])
    silent = NVFP4Weight(torch.zeros_like(weight.packed_weight), weight.block_scale, weight.global_scale)
    assert fit(silent, zeros).error == 0.0


def test_a_source_that_is_not_finite_is_no_judge() -> None:
    source = weights("gaussian")
    source[3, 3] = torch.nan
    assert compare(quantize(weights("gaussian")), source) is None


@pytest.mark.parametrize("factor", [0.25, 4.0])
def test_a_damaged_block_is_seen_in_a_sound_tensor(factor: float) -> None:
    source = weights("gaussian")
    weight = quantize(source)
    scale = weight.block_scale.float()
    scale[7, 3] = (scale[7, 3] * factor).clamp(max=448)
    damaged = NVFP4Weight(weight.packed_weight, scale.to(torch.float8_e4m3fn), weight.global_scale)
    if factor > 1:
        assert scale[7, 3] / weight.block_scale.float()[7, 3] > 1.5
    result = fit(damaged, source)
    assert result.error <= MAX_TENSOR_ERROR
    assert (result.num_bad_blocks, result.worst[:2]) == (1, (7, 3))
