"""Two NVFP4 weights, rows against rows: which differences follow from the scales, and which are causes of their own.

The test is exact and needs no source. A stored block scale stands for an interval of block amax, a stored code for an
interval of weights: everything that rounds to it. Where the scales differ, a difference *follows* when the two
intervals meet, so that one block amax, or one weight, explains both sides; where they do not meet, it is a cause.

Shape letters: R rows, G blocks of 16 along K, and the 16 values of a block last.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fourfold.compare.report import Cause
from fourfold.nvfp4 import BLOCK_SIZE, E2M1_GRID, NVFP4Weight, unpack_codes
from fourfold.nvfp4.constants import CODES_PER_BYTE
from fourfold.nvfp4.tensor import split_blocks

_SIGN_BIT = 8
_MAX_SCALE_BYTE = 0x7E
#: Scaled values are quotients of float32 products: a few roundings of 2^-24 on each side.
_SLACK = 2.0**-20

#: Steps counted one by one; the last bin holds everything beyond.
MAX_STEPS = 4


def _neighbour_intervals(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of an ascending grid, the interval that rounds to each value: halfway to its neighbours, open at the top."""
    middle = (values[1:] + values[:-1]) / 2
    return torch.cat([values[:1] * 0, middle]), torch.cat([middle, torch.tensor([torch.inf])])


def _scale_intervals() -> tuple[torch.Tensor, torch.Tensor]:
    """Lowest and highest exact scale that is stored as each byte 0x00-0x7F; NaN for the NaN byte."""
    values = torch.arange(_MAX_SCALE_BYTE + 1, dtype=torch.uint8).view(torch.float8_e4m3fn).to(torch.float32)
    low, high = _neighbour_intervals(values)
    # Producers raise what would round to zero to the least subnormal.
    low[1] = 0.0
    nan = torch.tensor([torch.nan])
    return torch.cat([low, nan]), torch.cat([high, nan])


def _code_intervals() -> tuple[torch.Tensor, torch.Tensor]:
    """Lowest and highest scaled weight that is stored as each code 0-15."""
    low, high = _neighbour_intervals(torch.tensor(E2M1_GRID))
    low[0] = -high[0]
    return torch.cat([low, -high]), torch.cat([high, -low])


_SCALE_LOW, _SCALE_HIGH = _scale_intervals()
_CODE_LOW, _CODE_HIGH = _code_intervals()


@dataclass(frozen=True)
class BlockComparison:
    """What the rows say. ``causes`` counts block scales or codes by cause; steps are counted by size, 1 first."""

    codes_differing: int
    block_scales_differing: int
    code_steps: list[int]
    block_scale_steps: list[int]
    causes: dict[Cause, int]


def compare_rows(a: NVFP4Weight, b: NVFP4Weight) -> BlockComparison:
    """Compare two weights [R, K]. Pass one ``global_scale`` for both where the stored ones count as equal."""
    differing = _differing_blocks(a, b)
    if differing is None:
        return BlockComparison(0, 0, [0] * MAX_STEPS, [0] * MAX_STEPS, {})
    a, b = differing
    codes_a, codes_b = (split_blocks(unpack_codes(w.packed_weight)).int() for w in (a, b))
    bytes_a, bytes_b = (w.block_scale.view(torch.uint8).int() for w in (a, b))
    step_a, step_b = (w.block_scale.to(torch.float32) * w.global_scale for w in (a, b))
    zero_a, zero_b = (((c & ~_SIGN_BIT) == 0).all(-1) for c in (codes_a, codes_b))
    scale_causes = _scale_causes(bytes_a, bytes_b, a.global_scale, b.global_scale, zero_a, zero_b)
    code_causes = _code_causes(codes_a, codes_b, step_a, step_b)
    # A block that one side flushed to zero differs in its codes by that policy alone.
    flushed = scale_causes[Cause.ZERO_BLOCK].unsqueeze(-1)
    masks = scale_causes | {cause: mask & ~flushed for cause, mask in code_causes.items()}
    counts = {cause: int(mask.sum()) for cause, mask in masks.items()}
    return BlockComparison(
        codes_differing=int((codes_a != codes_b).sum()),
        block_scales_differing=int((bytes_a != bytes_b).sum()),
        code_steps=_count_steps(_grid_index(codes_a) - _grid_index(codes_b)),
        block_scale_steps=_count_steps(bytes_a - bytes_b),
        causes={cause: count for cause, count in counts.items() if count},
    )


def _differing_blocks(a: NVFP4Weight, b: NVFP4Weight) -> tuple[NVFP4Weight, NVFP4Weight] | None:
    """The blocks [N, 16] of which a byte differs, None where none does; causes are sought in these alone."""
    packed_a, packed_b = (w.packed_weight.reshape(*w.block_scale.shape, BLOCK_SIZE // CODES_PER_BYTE) for w in (a, b))
    bytes_a, bytes_b = (w.block_scale.view(torch.uint8) for w in (a, b))
    chosen = (packed_a != packed_b).any(-1) | (bytes_a != bytes_b)
    if not bool(chosen.any()):
        return None

    def choose(packed: torch.Tensor, scale: torch.Tensor, global_scale: torch.Tensor) -> NVFP4Weight:
        return NVFP4Weight(packed[chosen], scale[chosen].unsqueeze(-1).view(torch.float8_e4m3fn), global_scale)

    return choose(packed_a, bytes_a, a.global_scale), choose(packed_b, bytes_b, b.global_scale)


def _scale_causes(
    bytes_a: torch.Tensor,
    bytes_b: torch.Tensor,
    global_a: torch.Tensor,
    global_b: torch.Tensor,
    zero_a: torch.Tensor,
    zero_b: torch.Tensor,
) -> dict[Cause, torch.Tensor]:
    """A mask [R, G] for each cause that a block scale can show."""
    differing = bytes_a != bytes_b
    # One side kept a block that the other flushed, because its scale would have rounded to zero.
    tiny = (zero_a & ~zero_b & (bytes_b <= 1)) | (zero_b & ~zero_a & (bytes_a <= 1))
    zero_block = differing & ((zero_a & zero_b) | tiny)
    live = differing & ~zero_block
    a, b = bytes_a.clamp(0, _MAX_SCALE_BYTE + 1), bytes_b.clamp(0, _MAX_SCALE_BYTE + 1)
    if torch.equal(global_a, global_b):
        follows = torch.zeros_like(live)
        near = (bytes_a - bytes_b).abs() == 1
    else:
        follows = _meet(_SCALE_LOW[a] * global_a, _SCALE_HIGH[a] * global_a, _SCALE_LOW[b] * global_b,
                        _SCALE_HIGH[b] * global_b)  # fmt: skip
        below, above = (a - 1).clamp(min=0), (a + 1).clamp(max=_MAX_SCALE_BYTE)
        near = _meet(_SCALE_LOW[below] * global_a, _SCALE_HIGH[above] * global_a, _SCALE_LOW[b] * global_b,
                     _SCALE_HIGH[b] * global_b)  # fmt: skip
    own = live & ~follows
    return {
        Cause.ZERO_BLOCK: zero_block,
        Cause.BLOCK_SCALE_ROUNDING: own & near,
        Cause.BLOCK_SCALE: own & ~near,
    }


def _code_causes(
    codes_a: torch.Tensor, codes_b: torch.Tensor, step_a: torch.Tensor, step_b: torch.Tensor
) -> dict[Cause, torch.Tensor]:
    """A mask [R, G, 16] for each cause that a code can show."""
    differing = codes_a != codes_b
    same_step = (step_a == step_b).unsqueeze(-1)
    distance = (_grid_index(codes_a) - _grid_index(codes_b)).abs()
    a, b = step_a.unsqueeze(-1), step_b.unsqueeze(-1)
    follows = ~same_step & _meet(_CODE_LOW[codes_a] * a, _CODE_HIGH[codes_a] * a, _CODE_LOW[codes_b] * b,
                                 _CODE_HIGH[codes_b] * b)  # fmt: skip
    own = differing & ~follows
    return {
        Cause.SIGNED_ZERO: own & (distance == 0),
        Cause.CODE_ROUNDING: own & (distance == 1),
        Cause.CODE: own & (distance > 1),
    }


def _meet(low_a: torch.Tensor, high_a: torch.Tensor, low_b: torch.Tensor, high_b: torch.Tensor) -> torch.Tensor:
    return (low_a <= high_b + _SLACK * high_b.abs()) & (low_b <= high_a + _SLACK * high_a.abs())


def _grid_index(codes: torch.Tensor) -> torch.Tensor:
    """Position on the signed grid, -7 to 7; both zeros are 0."""
    magnitude = codes & ~_SIGN_BIT
    return torch.where(codes >= _SIGN_BIT, -magnitude, magnitude)


def _count_steps(difference: torch.Tensor) -> list[int]:
    """Counts of distances 1, 2, ..., with everything from ``MAX_STEPS`` on in the last."""
    distance = difference.abs().clamp(max=MAX_STEPS).flatten()
    return torch.bincount(distance, minlength=MAX_STEPS + 1)[1:].tolist()
