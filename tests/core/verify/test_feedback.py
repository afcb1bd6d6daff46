"""Error feedback is told from damage by what all rows share, whatever a manifest says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fourfold.checkpoint.layouts import COMPRESSED_TENSORS, MODELOPT
from fourfold.engine.gptq import gptq
from fourfold.nvfp4 import NVFP4Weight, encode_e2m1, pack_codes, quantize
from fourfold.verify import verify_checkpoint
from fourfold.verify.feedback import damaged_blocks, has_feedback, is_feedback
from fourfold.verify.fit import MAX_BLOCK_ERROR, MAX_GAIN, MAX_TENSOR_ERROR, MIN_GAIN, block_errors, compare

from .good_checkpoints import Editable, Variant
from .planting_feedback import OVERFIT, feed_back, with_feedback
from .planting_tensors import DENSE

ROWS, COLUMNS = 96, 64


def rounded(seed: int = 0, spread: float = 0.0, rows: int = ROWS) -> tuple[NVFP4Weight, torch.Tensor]:
    source = torch.randn(rows, COLUMNS, generator=torch.Generator().manual_seed(100 + seed)).to(torch.bfloat16)
    source *= torch.linspace(0.7, 1.4, rows, dtype=torch.bfloat16)[:, None]
    return with_feedback(quantize(source), source, spread, seed), source


def error(weight: NVFP4Weight, source: torch.Tensor) -> float:
    fit = compare(weight, source)
    assert fit is not None
    return fit.error


def test_feedback_leaves_the_bound_in_single_blocks_and_is_no_damage() -> None:
    over = 0
    for seed in range(12):
        weight, source = rounded(seed)
        assert has_feedback(weight, source)
        assert error(weight, source) <= MAX_TENSOR_ERROR
        over += int((block_errors(weight, source) > MAX_BLOCK_ERROR).sum())
        assert not bool(damaged_blocks(weight, source).any())
    assert over > 20, "nothing was over the bound, so nothing was shown"


@pytest.mark.parametrize("kind", ["zeros", "random", "scale x 4", "signs flipped", "neighbours swapped"])
def test_a_damaged_block_is_found_among_feedback(kind: str) -> None:
    """In 30 of 30 places of 10 tensors, and nowhere else."""
    generator = torch.Generator().manual_seed(9)
    for seed in range(10):
        weight, source = rounded(seed)
        for _ in range(3):
            row, block = (int(torch.randint(n, (), generator=generator)) for n in (ROWS, COLUMNS // 16))
            packed, scale = weight.packed_weight.clone(), weight.block_scale.clone()
            bytes_ = packed[row, 8 * block : 8 * block + 8]
            match kind:
                case "zeros":
                    bytes_.zero_()
                case "random":
                    bytes_.copy_(torch.randint(256, (8,), generator=generator).to(torch.uint8))
                case "neighbours swapped":
                    bytes_.copy_((bytes_ << 4) | (bytes_ >> 4))
                case "signs flipped":
                    bytes_.bitwise_xor_(0x88)
                case _:
                    scale[row, block] = (scale[row, block].float() * 4).clamp(max=448).to(scale.dtype)
            found = damaged_blocks(NVFP4Weight(packed, scale, weight.global_scale), source)
            if float(scale[row, block]) < 2 * float(weight.block_scale[row, block]) and "scale" in kind:
                continue  # one of the largest blocks, which float8 does not let grow
            assert (found > 0).nonzero().tolist() == [[row, block]], (seed, row, block)


def test_nearest_codes_are_never_excused() -> None:
    source = rounded()[1]
    weight = quantize(source)
    weight.packed_weight[5, 8:16] = 0
    assert not has_feedback(weight, source)
    assert (damaged_blocks(weight, source) > 0).nonzero().tolist() == [[5, 1]]


def test_too_few_rows_excuse_nothing() -> None:
    for seed in range(12):
        weight, source = rounded(seed, rows=32)
        over = block_errors(weight, source) > MAX_BLOCK_ERROR
        assert torch.equal(damaged_blocks(weight, source) > 0, over)


def test_overfitting_is_named_only_where_it_is_the_cause() -> None:
    weight, source = rounded(spread=OVERFIT)
    assert error(weight, source) > MAX_TENSOR_ERROR
    assert is_feedback(weight, source)
    other = rounded(seed=1, spread=OVERFIT)[1]
    assert not is_feedback(weight, other), "another weight is not this one, moved"
    assert not is_feedback(NVFP4Weight(weight.packed_weight, weight.block_scale, weight.global_scale * 1.5), source)
    assert not is_feedback(quantize(source), source)


def searched(seed: int) -> tuple[NVFP4Weight, torch.Tensor]:
    """The engine's GPTQ, fitted hard to 24 tokens: its scales are searched for blocks that it had moved."""
    generator = torch.Generator().manual_seed(seed)
    source = torch.randn(ROWS, COLUMNS, generator=generator).to(torch.bfloat16)
    tokens = torch.randn(24, 24, generator=generator) @ torch.randn(24, COLUMNS, generator=generator)
    tokens *= torch.randn(COLUMNS, generator=generator).exp()  # columns of unlike size, as behind a norm
    scale = (source.abs().max().float() / 2688)[None]
    decoded, block_scale = gptq(source[None], (tokens.T @ tokens)[None], scale, torch.tensor([0.001]))
    steps = (block_scale[0].float() * scale).repeat_interleave(16, -1)
    packed = pack_codes(encode_e2m1(decoded[0] / steps))
    return NVFP4Weight(packed, block_scale[0], scale[0]), source


def test_overfitting_under_searched_scales_is_named_and_damage_to_them_is_not() -> None:
    generator, fitted = torch.Generator().manual_seed(3), 0
    for seed in range(10):
        weight, source = searched(seed)
        fitted += error(weight, source) > MAX_TENSOR_ERROR
        assert is_feedback(weight, source)
        own = weight.block_scale.float()
        shuffled = own.flatten()[torch.randperm(own.numel(), generator=generator)].view_as(own)
        swizzled = own.view(ROWS // 32, 32, -1).transpose(0, 1).reshape(own.shape)
        some = torch.rand(own.shape, generator=generator) < 0.1
        for damaged in (shuffled, swizzled, own.roll(1, 1), own.where(~some, own * 2), own.where(~some, own * 0.5)):
            scale = damaged.clamp(max=448).to(torch.float8_e4m3fn)
            assert not is_feedback(NVFP4Weight(weight.packed_weight, scale, weight.global_scale), source)
        noise = torch.randn(source.shape, generator=generator) * source.float().std() * 0.3
        assert not is_feedback(quantize((source.float() + noise).to(torch.bfloat16)), source)
    assert fitted >= 5, "hardly any weight was beyond rounding, so hardly anything was shown"


@pytest.mark.parametrize(("factor", "told_past_rounding"), [(0.88, True), (0.94, False), (1.06, True)])
def test_a_global_scale_that_is_off_is_no_feedback(factor: float, told_past_rounding: bool) -> None:
    """Feedback's errors leave the share of the source as it is, past rounding nearly; a wrong scale multiplies it."""
    for made in ([rounded(seed, spread) for seed in range(8) for spread in (0.0, OVERFIT)], map(searched, range(8))):
        for weight, source in made:
            fit = compare(weight, source)
            assert fit is not None
            assert MIN_GAIN <= fit.gain <= MAX_GAIN
            off = NVFP4Weight(weight.packed_weight, weight.block_scale, weight.global_scale * factor)
            fit = compare(off, source)
            assert fit is not None
            assert not MIN_GAIN <= fit.gain <= MAX_GAIN
            assert not (told_past_rounding and is_feedback(off, source))


@pytest.mark.parametrize("layout", [MODELOPT.name, COMPRESSED_TENSORS.name])
def test_a_checkpoint_with_feedback_raises_nothing(
    layout: str, editable: Callable[..., Editable], source: Path
) -> None:
    checkpoint = editable(Variant(layout))
    for part in ("gate_proj", "up_proj"):
        feed_back(f"{DENSE}.{part}")(checkpoint, source)
    checkpoint.save()
    report = verify_checkpoint(checkpoint.folder, source=source)
    assert report.findings == ()
