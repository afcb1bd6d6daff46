"""Error feedback (GPTQ and kin) told from damage, by what all rows of a matrix share.

GPTQ rounds column after column and moves what is left of a row by the rounding errors so far. No bound on the error of
single weights follows: damping d (share of the Hessian's mean diagonal) only limits it to about ``sqrt(1 + 1/d)``
times rounding's own, tenfold at the usual 0.01. But the coefficients of the moves come from the inputs alone, so
**they are the same in every row**: a row's error is a row of independent rounding errors times one matrix. Where
inputs leave a direction free, errors are large along it, in all rows; across it they are rounding's own. A damaged
block has its error where no other row has any.

So a block (r, b) over the bound is compared with the same 16 columns of all other rows, rows measured in their own RMS
weight: ``d = e S^-1 e / 16``, with S the mean ``e e^T`` of the others, e [16] the block's error (Sherman-Morrison
gives it from one inverse a column block). Errors like the others' have d near 1. A rounding error is at most 3.3 times
its RMS (one step at the grid's top against 0.3), so bounded errors in all 16 directions at once reach 11, blocks with
steps over the row's typical one somewhat more. Measured on the demo model: of 1,915 blocks over the bound that
ModelOpt's GPTQ left (4,096 and 16,384 tokens), the worst has 14.1; blocks of zeros and of random codes have over 16 in
all of 4,600 trials, blocks with a scale off by 4 in nearly all (down to 10.7).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fourfold.nvfp4 import (
    BLOCK_SIZE,
    BlockScalePolicy,
    block_amax,
    block_scale_from_amax,
    decode_e2m1,
    unpack_codes,
)
from fourfold.verify.fit import (
    MAX_BLOCK_ERROR,
    MAX_GAIN,
    MAX_NEAREST_ERROR,
    MIN_NEAREST_SHARE,
    block_errors,
    compare,
    nearest_share,
)

if TYPE_CHECKING:
    import torch

    from fourfold.nvfp4 import NVFP4Weight

#: A block whose error is this far from the other rows' errors in its columns is damaged.
MAX_DISTANCE = 16.0
#: Under so many rows a covariance of 16 columns says nothing.
_MIN_ROWS = 40
#: Rounding alone has a RMS error of some 0.09 of the weights'; no direction is taken to have less than this.
_LEAST_ERROR = 0.02
#: Share of block scales that must be those of the source's own amax, to one step of float8.
_MIN_OWN_SCALES = 0.99
#: Error feedback leaves a weight this much like its source.
_MIN_CORRELATION = 0.9
#: And so much of the source in it: 0.965 and more on the demo. A weight of an expert with few tokens is fitted further,
#: and it is a doubt that is at stake here, so there is room beyond what rounding's bound allows (``fit.MIN_GAIN``).
_MIN_GAIN = 0.9
#: Searched scales follow the source's amaxes, in logarithms, with a correlation of 0.56 and more (the engine's GPTQ,
#: all 2,344 matrices of the demo); permuted ones with 0.19 at most.
_MIN_FOLLOWING = 0.4
#: Feedback's errors are large along few directions: their geometric mean over all is 0.10 in the two weights of the
#: demo that the engine carried beyond rounding, 0.17 at most in the 45 of both toolchains. Noise, alike in all
#: directions, has the weight's own error, which is over 0.25 where this is asked.
_MAX_SPREAD = 0.2


def has_feedback(weight: NVFP4Weight, source: torch.Tensor) -> bool:
    """Whether codes are not the nearest ones to ``source`` [O, K] under the stored scales."""
    return nearest_share(weight, source) < MIN_NEAREST_SHARE


def damaged_blocks(weight: NVFP4Weight, source: torch.Tensor) -> torch.Tensor:
    """float32 [O, G]: relative error of the blocks over the bound that error feedback does not explain, others 0."""
    import torch

    errors = block_errors(weight, source)
    bad = errors > MAX_BLOCK_ERROR
    if source.shape[0] >= _MIN_ROWS and has_feedback(weight, source):
        for column in bad.any(0).nonzero().flatten().tolist():
            bad[:, column] &= _distances(weight, source, column) > MAX_DISTANCE
    return torch.where(bad, errors, torch.zeros_like(errors))


def _distances(weight: NVFP4Weight, source: torch.Tensor, column: int) -> torch.Tensor:
    """float64 [O]: each row's error in one column block against the other rows' covariance there."""
    import torch

    error = _relative_errors(weight, source)[:, column]
    count = error.shape[0]
    floor = torch.eye(BLOCK_SIZE, dtype=torch.float64) * (count * _LEAST_ERROR**2)
    leverage = ((error @ torch.linalg.inv(error.T @ error + floor)) * error).sum(-1)
    distance: torch.Tensor = leverage / (1 - leverage).clamp(min=1e-12) * (count - 1) / BLOCK_SIZE
    return distance


def _relative_errors(weight: NVFP4Weight, source: torch.Tensor) -> torch.Tensor:
    """float64 [O, G, 16]: errors in their row's RMS weight."""
    import torch

    own = source.to(torch.float32)
    errors = (weight.dequantize() - own) / own.square().mean(-1, keepdim=True).sqrt().clamp(min=1e-30)
    return errors.to(torch.float64).view(own.shape[0], -1, BLOCK_SIZE)


def _spread(weight: NVFP4Weight, source: torch.Tensor) -> float:
    """Geometric mean of the error's RMS over all directions within blocks."""
    import torch

    errors = _relative_errors(weight, source).transpose(0, 1)
    covariance = errors.transpose(1, 2) @ errors / errors.shape[1]
    return float((torch.linalg.slogdet(covariance).logabsdet / (2 * BLOCK_SIZE)).mean().exp())


def is_feedback(weight: NVFP4Weight, source: torch.Tensor) -> bool:
    """Whether a weight misses its source as error feedback does: a near weight, moved codes, scales of its own."""
    fit = compare(weight, source)
    if fit is None or not _MIN_GAIN <= fit.gain <= MAX_GAIN or not has_feedback(weight, source):
        return False
    return _correlation(weight.dequantize(), source) > _MIN_CORRELATION and (
        _are_of_source(weight, source) or _are_searched(weight, source)
    )


def _are_of_source(weight: NVFP4Weight, source: torch.Tensor) -> bool:
    """Whether block scales are those of the source's own blocks, to one step of float8 (ModelOpt, llm-compressor)."""
    import torch

    apart = _own_scales(weight, source).view(torch.uint8).to(torch.int16)
    apart -= weight.block_scale.view(torch.uint8).to(torch.int16)
    return float((apart.abs() <= 1).to(torch.float32).mean()) >= _MIN_OWN_SCALES


def _are_searched(weight: NVFP4Weight, source: torch.Tensor) -> bool:
    """Whether block scales may have been searched for blocks as feedback had moved them (Fourfold's engine).

    They follow the source's own; errors lie along few directions, as no noise does; and no block is one that damage
    makes: unlike the others of its columns, or over the bound with codes that are the nearest ones under some other
    scale. Where feedback moved a block that far, no scale gives it back.
    """
    import torch

    own, stored = _own_scales(weight, source), weight.block_scale
    floor = torch.finfo(torch.float8_e4m3fn).smallest_normal / 8
    if _correlation(*(scale.to(torch.float32).clamp(min=floor).log() for scale in (own, stored))) < _MIN_FOLLOWING:
        return False
    if source.shape[0] < _MIN_ROWS or _spread(weight, source) > _MAX_SPREAD:
        return False
    if bool((damaged_blocks(weight, source) > 0).any()):
        return False
    bad = block_errors(weight, source) > MAX_BLOCK_ERROR
    return not bool((_errors_under_best_scales(weight, source)[bad] <= MAX_NEAREST_ERROR).any())


def _own_scales(weight: NVFP4Weight, source: torch.Tensor) -> torch.Tensor:
    """float8_e4m3fn [O, G]: the block scales of the source's amaxes under the stored global scale."""
    return block_scale_from_amax(block_amax(source), weight.global_scale, BlockScalePolicy.MODELOPT)


def _errors_under_best_scales(weight: NVFP4Weight, source: torch.Tensor) -> torch.Tensor:
    """float32 [O, G]: what :func:`block_errors` would be with the step that brings each block's codes nearest."""
    codes = decode_e2m1(unpack_codes(weight.packed_weight)).view(source.shape[0], -1, BLOCK_SIZE)
    own = source.to(codes.dtype).view(codes.shape)
    step = (codes * own).sum(-1) / codes.square().sum(-1).clamp(min=1e-30)
    off, norm = (codes * step.unsqueeze(-1) - own).square().sum(-1), own.square().sum(-1)
    errors: torch.Tensor = (off / norm.clamp(min=float(norm.mean()) / 4)).sqrt()
    return errors


def _correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    """Pearson's; NaN, which is over no bound, where one of them is constant."""
    import torch

    return float(torch.corrcoef(torch.stack((a.flatten(), b.to(a.dtype).flatten())))[0, 1])
