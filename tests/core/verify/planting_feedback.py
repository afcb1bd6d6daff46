"""Error feedback as GPTQ has it: rounding errors of earlier columns move later ones, by coefficients all rows share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from fourfold.nvfp4 import BLOCK_SIZE, NVFP4Weight, encode_e2m1, pack_codes
from fourfold.nvfp4.e2m1 import decode_e2m1

from .good_checkpoints import Editable
from .planting_tensors import DENSE, source_weight

#: Share of the Hessian's mean diagonal that is added: so little that single blocks leave the bound.
DAMPING = 3e-4
#: Decades between the first and the last column's inputs: with one, whole weights leave the bound too.
OVERFIT = 1.0


def with_feedback(weight: NVFP4Weight, source: torch.Tensor, spread: float = 0.0, seed: int = 0) -> NVFP4Weight:
    """``source`` [O, K] rounded column by column under ``weight``'s scales.

    Inputs fill half of all directions; the others are free to carry errors.
    """
    generator = torch.Generator().manual_seed(seed)
    columns = source.shape[1]
    inputs = torch.randn(4 * columns, columns // 2, generator=generator, dtype=torch.float64)
    inputs = inputs @ torch.randn(columns // 2, columns, generator=generator, dtype=torch.float64)
    inputs += 0.002 * torch.randn(inputs.shape, generator=generator, dtype=torch.float64)
    inputs *= torch.logspace(0, -spread, columns, dtype=torch.float64)
    hessian = inputs.T @ inputs
    hessian += DAMPING * hessian.diagonal().mean() * torch.eye(columns)
    # GPTQ: rows of the upper Cholesky factor of the inverse are the moves.
    moves = torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True).float()
    step = (weight.block_scale.float() * weight.global_scale).repeat_interleave(BLOCK_SIZE, dim=-1)
    moved, codes = source.float().clone(), torch.zeros(source.shape, dtype=torch.uint8)
    for column in range(columns):
        codes[:, column] = encode_e2m1(moved[:, column] / step[:, column])
        error = moved[:, column] - decode_e2m1(codes[:, column]) * step[:, column]
        moved[:, column:] -= torch.outer(error / moves[column, column], moves[column, column:])
    return NVFP4Weight(pack_codes(codes), weight.block_scale, weight.global_scale)


def feed_back(module: str, spread: float = 0.0, *, zeroed: bool = False) -> Callable[[Editable, Path], None]:
    """Round a module with error feedback; ``zeroed``: and lose one block of codes."""

    def plant(e: Editable, source: Path) -> None:
        stored = NVFP4Weight(
            e.part(module, "packed_weight"), e.part(module, "block_scale"),
            e.layout.from_stored(e.part(module, "global_scale")),
        )  # fmt: skip
        packed = with_feedback(stored, source_weight(source, module), spread).packed_weight
        if zeroed:
            packed[3, 8:16] = 0
        e.put(module, "packed_weight", packed)

    return plant


def moved_under(factor: float) -> Callable[[Editable, Path], None]:
    """Round a layer's dense gate and up with error feedback, then store another global scale for both."""

    def plant(e: Editable, source: Path) -> None:
        for module in (f"{DENSE}.gate_proj", f"{DENSE}.up_proj"):
            feed_back(module)(e, source)
            e.scale_by(module, "global_scale", factor)

    return plant
