"""GPTQ's result made better in place: every block again, against what all others decode to by now.

GPTQ looks at a column once and cannot take back a code when later columns did not make up for it, and it gives a block
its scale before its codes are known. Coordinate descent on the same error has neither limit. For each block of 16
columns in turn, the float8 scales around its own are tried; under each, its codes are rounded one after another to the
minimum that all other weights leave them; the scale and codes with the least error are kept, the present ones among
them. So no step makes the error larger, and nothing is needed that GPTQ did not hold already. For codes alone this is
QuantEase (https://arxiv.org/abs/2309.01885); the scales are searched with them here.

Shape letters: N matrices, O out features, K in features, G = K/16 blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fourfold.engine.encode import rounded
from fourfold.engine.gptq import added_to_diagonal
from fourfold.nvfp4 import BLOCK_SIZE

#: Float8 codes tried on either side of a block's scale. Eight, a factor of two, gain little over these.
_REACH = 3
_LARGEST_CODE = 126


@dataclass
class _Block:
    """A column block of all rows: decoded weights [N, O, 16], scale codes int16 [N, O], change of the error [N, O]."""

    decoded: torch.Tensor
    code: torch.Tensor
    change: torch.Tensor

    def keep_better(self, other: _Block) -> None:
        """Take over the rows in which ``other`` is better."""
        better = other.change < self.change
        self.decoded = torch.where(better.unsqueeze(-1), other.decoded, self.decoded)
        self.code = torch.where(better, other.code, self.code)
        self.change = torch.where(better, other.change, self.change)


def descend(
    weight: torch.Tensor,
    decoded: torch.Tensor,
    block_scale: torch.Tensor,
    *,
    hessian: torch.Tensor,
    global_scale: torch.Tensor,
    damping: torch.Tensor,
    sweeps: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Decoded weights, float32 [N, O, K], and block scales, float8_e4m3fn [N, O, G], of no more error than those given.

    ``decoded`` and ``block_scale`` are what :func:`fourfold.engine.gptq.gptq` made of the other arguments; the error is
    D (X^T X + damping) D^T for each row D of ``decoded - weight``. ``sweeps``: how often all blocks are gone over.
    """
    added = added_to_diagonal(hessian, damping)
    codes = block_scale.view(torch.uint8).to(torch.int16)
    decoded = decoded.clone()
    difference = decoded - weight.float()
    for _ in range(sweeps):
        for block in range(codes.shape[-1]):
            columns = slice(block * BLOCK_SIZE, (block + 1) * BLOCK_SIZE)
            moments = hessian[..., columns].clone()
            moments[:, columns].diagonal(dim1=-2, dim2=-1).add_(added.unsqueeze(-1))
            present = decoded[..., columns]
            slope = difference @ moments
            best = _best(present, codes[..., block], slope, moments[:, columns].contiguous(), global_scale)
            difference[..., columns] += best.decoded - present
            decoded[..., columns], codes[..., block] = best.decoded, best.code
    return decoded, codes.to(torch.uint8).view(torch.float8_e4m3fn)


def _best(
    present: torch.Tensor, code: torch.Tensor, slope: torch.Tensor, moments: torch.Tensor, global_scale: torch.Tensor
) -> _Block:
    """The best of ``present`` [N, O, 16] under ``code`` [N, O] and of what is found under it and its neighbours.

    ``slope`` [N, O, 16] is half the error's gradient, ``moments`` [N, 16, 16] the damped X^T X of the block's columns.
    """
    best = _Block(present.clone(), code.clone(), torch.zeros_like(slope[..., 0]))
    for offset in sorted(range(-_REACH, _REACH + 1), key=abs):
        moved = (code + offset).clamp_(1, _LARGEST_CODE)
        step = moved.to(torch.uint8).view(torch.float8_e4m3fn).float() * global_scale[:, None]
        best.keep_better(_rounded_in_turn(present, moved, step, slope, moments))
    return best


def _rounded_in_turn(
    present: torch.Tensor, code: torch.Tensor, step: torch.Tensor, slope: torch.Tensor, moments: torch.Tensor
) -> _Block:
    """``present`` on the grid of ``step`` [N, O], each column then at the minimum that the others leave it."""
    decoded = rounded(present / step.unsqueeze(-1)).mul_(step.unsqueeze(-1))
    here = slope + (decoded - present) @ moments
    for column in range(BLOCK_SIZE):
        own = moments[:, column]  # [N, 16]
        value = decoded[..., column]
        nearest = rounded((value - here[..., column] / own[:, column, None]) / step).mul_(step)
        here += (nearest - value).unsqueeze(-1) * own.unsqueeze(1)
        decoded[..., column] = nearest
    # Of a quadratic, the change is the mean of the slopes at both ends times the way.
    return _Block(decoded, code, ((slope + here) * (decoded - present)).sum(-1))
