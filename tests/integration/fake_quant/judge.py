"""What ModelOpt's fake-quantized weights may differ in from the decoded checkpoint, block by block.

A block of a kernel's output either equals the decoded one, as numbers, or one of these reasons is *proven* for it:

``tiny``          the kernel's step (float8 scale x global scale) is under 1e-5, and it writes zeros, while ModelOpt's
                  export floors the scale at 2^-9 and keeps codes. The decoded values are then at most
                  max(6e-5, 3 x 2^-9 x global scale): six steps, or three steps of the floor.
``interpreter``   Triton's interpreter, not the kernel, casts the block's scale to float8 wrongly (where rounding
                  carries into the exponent). The block must then be what that wrong scale gives, to the bit.
``division``      on a GPU, Triton divides approximately (two float32 ulp). A quotient that close to a tie may go either
                  way: the block must be what quotients moved by 2^-21 give, and nothing else.
``order``         the kernel of static quantizers is given steps computed in another order: within 2^-22 of the
                  stored. The block must be what rounding by those steps gives.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from fourfold.nvfp4 import NVFP4Weight, quantize, round_to_e2m1
from fourfold.nvfp4.constants import BLOCK_SIZE

#: The kernel's least step, and what a code of 6 and a floored scale's largest code decode to under it.
LEAST_STEP = 1e-5
LARGEST_TINY_CODE, FLOOR = 3, 2**-9
#: Two ulp of a float32 division and its operands' rounding; the order of two products and a quotient.
DIVISION, ORDER = 2.0**-21, 2.0**-22


@dataclass
class Verdict:
    """Blocks looked at, and those that differ by reason; ``unexplained`` names (matrix, row, block)."""

    blocks: int = 0
    reasons: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("tiny", "interpreter", "division", "order"), 0)
    )
    largest_tiny: float = 0.0
    unexplained: list[tuple[str, int, int]] = field(default_factory=list)


def judge(
    verdict: Verdict, name: str, weight: torch.Tensor, stored: NVFP4Weight, kernel: torch.Tensor, *,
    cast_scale: torch.Tensor | None = None, step: torch.Tensor | None = None, on_gpu: bool = False,
) -> None:  # fmt: skip
    """Compare ``kernel`` [O, K] to ``stored`` decoded in its dtype.

    ``cast_scale`` [O, G] is the interpreter's float8 cast, ``step`` [O, G] what a static quantizer was given.
    """
    decoded, found = blocks(stored.dequantize(kernel.dtype).float()), blocks(kernel.float())
    differs = (decoded != found).any(-1)
    verdict.blocks += differs.numel()
    if not bool(differs.any()):
        return
    at = differs.nonzero()
    rows, columns = at.T
    own, d, f = blocks(weight.float())[rows, columns], decoded[rows, columns], found[rows, columns]
    scale = stored.global_scale
    ratio = own.abs().amax(-1) / (6 * scale)
    used = cast_scale[rows, columns] if cast_scale is not None else _e4m3(ratio)
    reasons = {"tiny": (used * scale < LEAST_STEP) & (f == 0).all(-1) & _is_tiny(d, scale)}
    if cast_scale is not None:
        given = cast_scale.where(cast_scale != 0, 1.0).to(torch.float8_e4m3fn)
        wrong = blocks(quantize(weight, global_scale=scale, block_scale=given).dequantize(kernel.dtype).float())
        reasons["interpreter"] = (used != _e4m3(ratio)) & (wrong[rows, columns] == f).all(-1)
    if on_gpu:
        steps = [_e4m3(ratio * factor) * scale for factor in (1 - DIVISION, 1.0, 1 + DIVISION)]
        rounded = [_rounds_to(own, s, f, kernel.dtype) for s in steps]
        reasons["division"] = torch.stack(rounded).any(0)
    if step is not None:
        near = torch.stack([(step[rows, columns] / s - 1).abs() <= ORDER for s in steps]).any(0)
        reasons["order"] = near & _rounds_to(own, step[rows, columns], f, kernel.dtype)
    open_ = torch.ones(len(at), dtype=torch.bool)
    for reason, holds in reasons.items():
        verdict.reasons[reason] += int((open_ & holds).sum())
        open_ &= ~holds
    if bool(reasons["tiny"].any()):
        verdict.largest_tiny = max(verdict.largest_tiny, float(d[reasons["tiny"]].abs().max()))
    verdict.unexplained += [(name, int(row), int(column)) for row, column in at[open_]]


def blocks(values: torch.Tensor) -> torch.Tensor:
    """[O, K] as [O, G, 16]."""
    return values.reshape(values.shape[0], -1, BLOCK_SIZE)


def _e4m3(ratio: torch.Tensor) -> torch.Tensor:
    return ratio.float().clamp(max=448).to(torch.float8_e4m3fn).float()


def _is_tiny(decoded: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    bound = torch.maximum(torch.tensor(6 * LEAST_STEP), LARGEST_TINY_CODE * FLOOR * scale)
    return decoded.abs().amax(-1) <= bound * (1 + 2**-8)  # an output in BF16 rounds the bound's own value


def _rounds_to(own: torch.Tensor, step: torch.Tensor, found: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Bool [n]: whether ``found`` [n, 16] is ``own`` rounded under ``step`` [n], quotients as a GPU divides."""
    step = step.unsqueeze(-1)
    quotient = (own.abs().double() / step.double()).float()
    fits = torch.zeros_like(found, dtype=torch.bool)
    for factor in (1 - DIVISION, 1.0, 1 + DIVISION):
        value = torch.copysign(round_to_e2m1(quotient * factor) * step, own)
        fits |= value.to(dtype).float() == found
    return fits.all(-1)
