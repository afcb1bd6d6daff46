"""How far a decoded weight may be from the source's.

Per block. A block of 16 is stored as codes times one step (block scale x global scale). With the step amax/6, a
value v steps large is off by at most 1/4 up to 2, 1/2 up to 4 and 1 up to 6 (half the grid's gaps). The largest
relative error of a whole block is reached with one value at 6 and fifteen at 5: sqrt(15 / (36 + 15 x 25)) = 0.19;
with values at 0.25, which round to 0, it is 0.16. Rounding the step itself to float8 (3 bits of mantissa, up to
1/16) moves the one at 6 by no more than 0.38 steps, less than another value's worst case, so 0.21 holds for any
block. An algorithm that picks the step by the smallest squared error (MSE sweep, four-over-six) is at most as far
off as that one. So 0.25 bounds whatever rounds to the nearest code.

Per tensor. The sum over blocks keeps the bound: relative RMS error at most 0.25. Gaussian weights give 0.095. GPTQ
moves codes away from the nearest to make up for the errors of others, and no useful bound follows from that (see
:mod:`fourfold.verify.feedback`): it is held to the same one, so that a weight fitted so hard to few tokens that any
rounding would be nearer to the source is found. Below the bound, an error says nothing about rightness; above it,
something else than rounding has happened.

Blocks of small weights are the exception: where the step falls under float8's normal range, and for GPTQ, errors do
not shrink with the block. A block is therefore measured against its own norm or half the tensor's typical block norm,
whichever is more, and its bound is twice the derived one. In a tensor whose codes are not the nearest ones, a block
over it is damaged only if its error is unlike those of the same columns in all other rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from fourfold.nvfp4 import BLOCK_SIZE, decode_e2m1, encode_e2m1, unpack_codes

if TYPE_CHECKING:
    import torch

    from fourfold.nvfp4 import NVFP4Weight

#: Relative RMS error of a tensor that rounding can cause.
MAX_TENSOR_ERROR = 0.25
#: The same for one block, with the margin for blocks under the typical norm.
MAX_BLOCK_ERROR = 0.5
#: A tensor with at least this share of nearest codes was rounded to nearest.
MIN_NEAREST_SHARE = 0.99
#: Relative error of a block that rounding to the nearest code can cause.
MAX_NEAREST_ERROR = 0.21
#: So many rows over it are looked at one code at a time.
MAX_WIDE_ROWS = 64
#: Share of the source that is left in a decoded weight. Errors of rounding, and those that feedback moves about, hardly
#: depend on the values they are added to: 0.977 to 1.003 in all matrices of the demo by five algorithms of three
#: quantizers, where they keep within rounding's bound. A wrong global scale multiplies it.
MIN_GAIN, MAX_GAIN = 0.96, 1.02
#: Weights compared at once.
_PIECE = 2**18


@dataclass(frozen=True)
class Fit:
    """A decoded weight beside the source's.

    ``error``: relative RMS. ``num_bad_blocks``: blocks over the bound, ``worst`` (row, block, error) the worst of all.
    ``factor``: by which the decoded weight (a sample of its rows) would have to be multiplied to be nearest to the
    source, ``gain``: by which the source would have to be, to be nearest to it. ``wide_rows``: the worst rows that hold
    a block no rounding to nearest leaves so far off.
    """

    error: float
    num_blocks: int
    num_bad_blocks: int
    worst: tuple[int, int, float]
    factor: float = 1.0
    gain: float = 1.0
    wide_rows: tuple[int, ...] = ()


def compare(weight: NVFP4Weight, source: torch.Tensor) -> Fit | None:
    """Compare ``weight`` [O, K], all finite, to ``source`` [O, K]; None when the source itself is not finite.

    A source of zeros must decode to zeros.
    """
    import torch

    ones = torch.ones(BLOCK_SIZE)
    offs: list[torch.Tensor] = []
    norms: list[torch.Tensor] = []
    factor = gain = 1.0
    for difference, reference in _pieces(weight, source):
        if not offs and (energy := float(difference.square().sum())):
            common = float(torch.dot(difference.flatten(), reference.flatten()))
            factor = common / energy
            gain = common / max(float(reference.square().sum()), 1e-30)
        # A product with ones sums blocks twice as fast as a reduction over so short an axis.
        difference -= reference
        offs.append(difference.square_() @ ones)
        norms.append(reference.square_() @ ones)
    off, norm = torch.cat(offs), torch.cat(norms)
    total, length = float(off.sum()), float(norm.sum())
    if not math.isfinite(length):
        return None
    if length == 0.0:
        return Fit(0.0 if total == 0.0 else math.inf, norm.numel(), 0, (0, 0, 0.0))
    relative = off / norm.clamp_(min=length / norm.numel() / 4)
    worst, row_blocks = int(relative.argmax()), source.shape[1] // BLOCK_SIZE
    return Fit(
        error=math.sqrt(total / length),
        num_blocks=relative.numel(),
        num_bad_blocks=int((relative > MAX_BLOCK_ERROR**2).sum()),
        worst=(worst // row_blocks, worst % row_blocks, math.sqrt(float(relative[worst]))),
        factor=factor,
        gain=gain,
        wide_rows=_wide_rows(relative.view(-1, row_blocks)),
    )


def _wide_rows(relative: torch.Tensor) -> tuple[int, ...]:
    worst = relative.amax(dim=1)
    if float(worst.max()) <= MAX_NEAREST_ERROR**2:
        return ()
    largest, rows = worst.topk(min(MAX_WIDE_ROWS, worst.numel()))
    return tuple(rows[largest > MAX_NEAREST_ERROR**2].tolist())


def block_errors(weight: NVFP4Weight, source: torch.Tensor) -> torch.Tensor:
    """float32 [O, G]: relative error of each block, as :func:`compare` holds it against :data:`MAX_BLOCK_ERROR`."""
    import torch

    ones = torch.ones(BLOCK_SIZE)
    pairs = [((decoded - own).square() @ ones, own.square() @ ones) for decoded, own in _pieces(weight, source)]
    off, norm = (torch.cat(part) for part in zip(*pairs, strict=True))
    return (off / norm.clamp(min=float(norm.sum()) / norm.numel() / 4)).sqrt().view(source.shape[0], -1)


def _pieces(weight: NVFP4Weight, source: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Decoded weight and source as float32 [blocks, 16], some rows at a time, so that both stay in the cache.

    The same numbers as :meth:`NVFP4Weight.dequantize`, to the bit, by a table of byte values.
    """
    import torch

    rows, packed_columns = weight.packed_weight.shape
    table, step = _byte_values(), max(1, _PIECE // (2 * packed_columns))
    bytes_ = weight.block_scale.view(torch.uint8).flatten().to(torch.int32)
    scale = (torch.index_select(_float8_values(), 0, bytes_) * weight.global_scale).view(rows, -1)
    for row in range(0, rows, step):
        packed = weight.packed_weight[row : row + step].flatten().to(torch.int32)
        decoded = torch.index_select(table, 0, packed).view(torch.float16).view(-1, BLOCK_SIZE).to(torch.float32)
        decoded *= scale[row : row + step].reshape(-1, 1)
        reference = source[row : row + step].reshape(-1, BLOCK_SIZE).to(torch.float32, copy=True)
        yield decoded, reference


@cache
def _byte_values() -> torch.Tensor:
    """int32 [256]: for each byte, the bits of its two values in float16, the low nibble's first."""
    import torch

    pairs = decode_e2m1(unpack_codes(torch.arange(256, dtype=torch.uint8).reshape(256, 1)))
    return pairs.to(torch.float16).view(torch.int32).flatten()


@cache
def _float8_values() -> torch.Tensor:
    """float32 [256]: each byte's float8_e4m3 value; four times as fast as the conversion."""
    import torch

    return torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).to(torch.float32)


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
