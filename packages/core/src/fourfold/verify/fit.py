"""How far a decoded weight may be from the source's.

Per block. A block of 16 is stored as codes times one step (block scale x global scale). With the step amax/6, a
value v steps large is off by at most 1/4 up to 2, 1/2 up to 4 and 1 up to 6 (half the grid's gaps). The largest relative
error of a whole block is reached with one value at 6 and fifteen at 5: sqrt(15 / (36 + 15 x 25)) = 0.19; with values at
0.25, which round to 0, it is 0.16. Rounding the step itself to float8 (3 bits of mantissa, up to 1/16) adds to the
one at 6 no more than another value's worst case, so 0.21 holds for any block. An algorithm that picks the step by the smallest squared error
(MSE sweep, four-over-six) is at most as far off as that one. So 0.25 bounds whatever rounds to the nearest code.

Per tensor. The sum over blocks keeps the bound: relative RMS error at most 0.25. Gaussian weights give 0.095; GPTQ, which
moves codes away from the nearest to make up for the errors of others, stays within 0.25 over a tensor, as it trades
weight error for output error at a factor of 1.2 to 1.6. Below the bound, an error says nothing about rightness;
above it, something else than rounding has happened.

Blocks of small weights are the exception: where the step falls under float8's normal range, and for GPTQ, errors do not
shrink with the block. A block is therefore measured against its own norm or half the tensor's typical block norm,
whichever is more, and its bound is twice the derived one. GPTQ has no bound for a single block at all; in
a tensor whose codes are not the nearest ones, a few blocks may exceed it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fourfold.nvfp4 import BLOCK_SIZE, encode_e2m1, unpack_codes

if TYPE_CHECKING:
    import torch

    from fourfold.nvfp4 import NVFP4Weight

#: Relative RMS error of a tensor that rounding can cause.
MAX_TENSOR_ERROR = 0.25
#: The same for one block, with the margin for blocks under the typical norm.
MAX_BLOCK_ERROR = 0.5
#: A tensor with at least this share of nearest codes was rounded to nearest.
MIN_NEAREST_SHARE = 0.99
#: Share of blocks over the bound that error feedback (GPTQ) may cause.
MAX_FEEDBACK_BLOCKS = 0.01


@dataclass(frozen=True)
class Fit:
    """A decoded weight beside the source's.

    ``error``: relative RMS. ``num_bad_blocks``: blocks over the bound, ``worst`` (row, block, error) the worst of all.
    """

    error: float
    num_blocks: int
    num_bad_blocks: int
    worst: tuple[int, int, float]


def compare(weight: NVFP4Weight, source: torch.Tensor) -> Fit:
    """Compare ``weight`` [O, K], all finite, to ``source`` [O, K]. A source of zeros must decode to zeros."""
    import torch

    reference = source.to(torch.float32)
    difference = weight.dequantize()
    difference -= reference
    rows = reference.shape[0]
    blocks = (rows, reference.shape[1] // BLOCK_SIZE, BLOCK_SIZE)
    off = torch.linalg.vector_norm(difference.view(blocks), dim=-1)
    norm = torch.linalg.vector_norm(reference.view(blocks), dim=-1)
    total, length = float(torch.linalg.vector_norm(off)), float(torch.linalg.vector_norm(norm))
    if length == 0.0:
        return Fit(0.0 if total == 0.0 else float("inf"), norm.numel(), 0, (0, 0, 0.0))
    typical = length / norm.numel() ** 0.5
    relative = off / norm.clamp_(min=0.5 * typical)
    worst = int(relative.argmax())
    return Fit(
        error=total / length,
        num_blocks=relative.numel(),
        num_bad_blocks=int((relative > MAX_BLOCK_ERROR).sum()),
        worst=(worst // blocks[1], worst % blocks[1], float(relative.flatten()[worst])),
    )


def nearest_share(weight: NVFP4Weight, source: torch.Tensor) -> float:
    """Share of codes that are the nearest ones to ``source`` under the stored scales."""
    import torch

    step = weight.block_scale.to(torch.float32) * weight.global_scale
    step = torch.where(step == 0, torch.ones_like(step), step).repeat_interleave(BLOCK_SIZE, dim=-1)
    nearest = encode_e2m1(source.to(torch.float32) / step)
    # Both zeros count as one.
    stored = unpack_codes(weight.packed_weight)
    same = (nearest == stored) | ((nearest & 7) + (stored & 7) == 0)
    return float(same.to(torch.float32).mean())
