"""Block scales that are searched instead of computed: less error in the same format.

Every candidate is judged by what it decodes to. ``mse`` tries the float8 numbers around the one that amax gives;
``four-over-six`` puts a block's largest value at 6 or at 4, with a global scale that leaves room for the latter;
``local-hessian`` weighs the error by X^T X of the block's own inputs. All experts of a batch go through at once.

Which numbers ``mse`` tries: with a step over twice amax / 6 all values lie in the lower half of the grid, and the grid
of half that step holds all its points and more; so larger ones are never better. Steps under half of amax / 6
leave at least a quarter of the largest value's square; they are not tried.

Shape letters: N matrices, O out features, K in features, G = K/16 blocks.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from fourfold.engine.encode import rounded
from fourfold.nvfp4 import BlockScalePolicy, block_amax, block_scale_from_amax
from fourfold.nvfp4.tensor import split_blocks

#: Float8 codes tried on either side; eight codes are a factor of two.
_REACH = 8
_LARGEST_CODE = 126
#: Under four-over-six the largest block scale is 256, so that 1.5 times it still fits float8.
FOUR_OVER_SIX_DIVISOR = 6.0 * 256.0
_FOUR_OVER_SIX = 1.5

Error = Callable[[torch.Tensor], torch.Tensor]


def search_mse(weight: torch.Tensor, global_scale: torch.Tensor, hessian: torch.Tensor | None = None) -> torch.Tensor:
    """Best block scales, float8_e4m3fn [N, O, G], of ``weight`` [N, O, K] under ``global_scale`` [N].

    ``hessian`` float32 [N, G, 16, 16] weighs errors; without it, or where it is zero, their squares count.
    """
    base = block_scale_from_amax(block_amax(weight), global_scale[:, None, None], BlockScalePolicy.MODELOPT)
    code = base.view(torch.uint8).to(torch.int16)
    candidates = [
        (code + offset).clamp_(1, _LARGEST_CODE).to(torch.uint8).view(torch.float8_e4m3fn)
        for offset in sorted(range(-_REACH, _REACH + 1), key=abs)
    ]
    return _best(weight, global_scale, candidates, _error(hessian))


def search_four_over_six(weight: torch.Tensor, global_scale: torch.Tensor) -> torch.Tensor:
    """For each block the better of two scales: its largest value at 6, or at 4. As :func:`search_mse`."""
    amax = block_amax(weight).float()
    at_six, at_four = (
        block_scale_from_amax(amax * factor, global_scale[:, None, None], BlockScalePolicy.MODELOPT)
        for factor in (1.0, _FOUR_OVER_SIX)
    )
    return _best(weight, global_scale, [at_six, at_four], _error(None))


def _best(
    weight: torch.Tensor, global_scale: torch.Tensor, candidates: list[torch.Tensor], error: Error
) -> torch.Tensor:
    """The candidate with the least error for each block; of equals, the first."""
    blocks = split_blocks(weight).float()
    best, least = candidates[0].view(torch.uint8).clone(), None
    for candidate in candidates:
        step = (candidate.float() * global_scale[:, None, None]).unsqueeze(-1)
        difference = rounded(blocks / step).mul_(step).sub_(blocks)
        found = error(difference)
        if least is None:
            least = found
            continue
        better = found < least
        best = torch.where(better, candidate.view(torch.uint8), best)
        least = torch.where(better, found, least)
    return best.view(torch.float8_e4m3fn)


def _error(hessian: torch.Tensor | None) -> Error:
    if hessian is None:
        return lambda difference: difference.square_().sum(-1)
    unseen = hessian.diagonal(dim1=-2, dim2=-1).sum((-1, -2)) == 0
    plain = torch.eye(hessian.shape[-1], device=hessian.device)
    weighing = torch.where(unseen[:, None, None, None], plain, hessian)

    def weighed(difference: torch.Tensor) -> torch.Tensor:
        by_block = difference.transpose(1, 2)  # [N, G, O, 16]
        return (by_block @ weighing).mul_(by_block).sum(-1).transpose(1, 2)

    return weighed
