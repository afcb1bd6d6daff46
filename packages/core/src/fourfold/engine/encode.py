"""Weights to codes and block scales in pieces that stay in a processor's cache.

:func:`encode` is :func:`fourfold.nvfp4.quantize` in ModelOpt's order of operations, bit for bit, several times as fast
on a CPU: the codec passes over whole tensors and looks codes up, this passes over a piece at a time and computes them.

Shape letters: N matrices, O out features, K in features, G = K/16 blocks.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from fourfold.nvfp4 import (
    BLOCK_SIZE,
    E2M1_MAX,
    BlockScalePolicy,
    NVFP4Weight,
    block_amax,
    block_scale_from_amax,
    pack_codes,
)
from fourfold.nvfp4.tensor import split_blocks

#: Weights in a piece: float32 work space of a few times 0.5 MB.
_CACHE_PIECE = 2**17
#: On a GPU a piece bounds work space alone.
_DEVICE_PIECE = 2**26


def encode(weight: torch.Tensor, global_scale: torch.Tensor, block_scale: torch.Tensor | None = None) -> NVFP4Weight:
    """Quantize ``weight`` [N, O, K] with ``global_scale`` float32 [N], and block scales [N, O, G] where they are given.

    Raises ValueError for a weight that is not finite; the message says which matrix, on a GPU the first of its piece.
    """
    num_matrices, num_rows, width = weight.shape
    packed = torch.empty(num_matrices, num_rows, width // 2, dtype=torch.uint8, device=weight.device)
    scales = torch.empty(num_matrices, num_rows, width // BLOCK_SIZE, dtype=torch.float8_e4m3fn, device=weight.device)
    for piece in _pieces(weight):
        given = None if block_scale is None else block_scale[piece]
        try:
            packed[piece], scales[piece] = _encode_rows(weight[piece], global_scale[piece[0], None, None], given)
        except ValueError as error:
            raise ValueError(f"matrix {piece[0].start}: {error}") from None
    return NVFP4Weight(packed, scales, global_scale)


def _pieces(weight: torch.Tensor) -> Iterator[tuple[slice, slice]]:
    """Ranges of matrices and rows: of one matrix on a CPU, of several whole ones on a GPU."""
    num_matrices, num_rows, width = weight.shape
    if weight.device.type != "cpu":
        step = max(1, _DEVICE_PIECE // (num_rows * width))
        for start in range(0, num_matrices, step):
            yield slice(start, start + step), slice(None)
        return
    rows = max(1, _CACHE_PIECE // width)
    for matrix in range(num_matrices):
        for start in range(0, num_rows, rows):
            yield slice(matrix, matrix + 1), slice(start, start + rows)


def _encode_rows(
    weight: torch.Tensor, global_scale: torch.Tensor, block_scale: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Packed codes and block scales of some rows [N, O, K]; ``global_scale`` is [N, 1, 1]."""
    if block_scale is None:
        block_scale = block_scale_from_amax(block_amax(weight), global_scale, BlockScalePolicy.MODELOPT)
    step = block_scale.float() * global_scale
    scaled = split_blocks(weight).to(torch.float32, copy=True).div_(step.unsqueeze(-1))
    return pack_codes(codes_of(scaled).flatten(-2)), block_scale


def codes_of(values: torch.Tensor) -> torch.Tensor:
    """E2M1 codes (uint8) of float32 ``values``, as :func:`fourfold.nvfp4.encode_e2m1` gives them, by arithmetic.

    From 1 on, E2M1 is float32 cut to one bit of mantissa: adding just under half of what is cut off, and the last
    kept bit, rounds to nearest with ties to even. Below 1 its steps are 0.5, which is the distance between float32
    numbers at 2^22: adding that rounds the same way.
    """
    magnitude = values.abs()
    bits = magnitude.view(torch.int32)
    normal = ((bits + 0x1FFFFF + ((bits >> 22) & 1)) >> 22).sub_(252).clamp_(max=7)
    small = (magnitude + 2.0**22).view(torch.int32) & 7
    codes = torch.where(magnitude < 1, small, normal).to(torch.uint8)
    return codes.add_((values < 0).to(torch.uint8), alpha=8)


def rounded(values: torch.Tensor) -> torch.Tensor:
    """``values`` (float32) rounded to the E2M1 grid, saturating at 6."""
    magnitude = values.abs()
    doubled = (magnitude * 2).round_().mul_(0.5)
    halved = (magnitude * 0.5).round_().mul_(2)
    nearest = torch.where(magnitude < 2, doubled, torch.where(magnitude < 4, magnitude.round(), halved))
    return nearest.clamp_(max=E2M1_MAX).copysign_(values)
