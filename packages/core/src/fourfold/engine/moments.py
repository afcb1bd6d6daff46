"""Second moments X^T X of a linear's inputs, for all experts of a layer at once.

Shape letters: E matrices (experts, or 1), K in features, G = K/16 blocks, S rows sorted by matrix.
"""

from __future__ import annotations

from enum import StrEnum

import torch

from fourfold.nvfp4 import BLOCK_SIZE


class MomentKind(StrEnum):
    """``blocks``: of every 16 columns among themselves, [E, G, 16, 16]. ``full``: of all columns, [E, K, K]."""

    BLOCKS = "blocks"
    FULL = "full"


class Moments:
    """Sums of x^T x in float32, and how many rows went into each."""

    def __init__(self, kind: MomentKind, count: int, width: int, device: torch.device) -> None:
        shape = (width // BLOCK_SIZE, BLOCK_SIZE, BLOCK_SIZE) if kind is MomentKind.BLOCKS else (width, width)
        self.kind = kind
        self.sums = torch.zeros(count, *shape, device=device)
        self.rows_E = torch.zeros(count, dtype=torch.int64)

    def add(self, rows: torch.Tensor, rows_E: torch.Tensor) -> None:
        """``rows`` [S, K] of the model's dtype, sorted by matrix; ``rows_E`` says how many are each one's."""
        start = 0
        for matrix, number in enumerate(rows_E.tolist()):
            if number:
                x = rows[start : start + number].float()
                if self.kind is MomentKind.BLOCKS:
                    blocks = x.T.reshape(-1, BLOCK_SIZE, number)
                    self.sums[matrix].baddbmm_(blocks, blocks.transpose(-1, -2))
                else:
                    self.sums[matrix].addmm_(x.T, x)
            start += number
        self.rows_E += rows_E.cpu()

    @property
    def nbytes(self) -> int:
        """Bytes of the sums."""
        return self.sums.nbytes
