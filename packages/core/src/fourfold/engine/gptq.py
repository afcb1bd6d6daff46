"""GPTQ for NVFP4, for many matrices at once: what rounding a column loses is made up for by the columns after it.

The method of Frantar et al. (https://arxiv.org/abs/2210.17323), columns in their own order. A block's scale is searched
(:func:`fourfold.engine.rounding.search_mse`) when its first column is reached, on the weights as they are by then.

Shape letters: N matrices, O out features, K in features, G = K/16 blocks, C columns of a group.
"""

from __future__ import annotations

import torch

from fourfold.engine.encode import rounded
from fourfold.engine.rounding import search_mse
from fourfold.nvfp4 import BLOCK_SIZE

#: Columns whose effect on all later ones is applied in one product.
_GROUP = 128


def gptq(
    weight: torch.Tensor, hessian: torch.Tensor, global_scale: torch.Tensor, damping: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights on their grid, float32 [N, O, K], and block scales, float8_e4m3fn [N, O, G].

    ``weight`` [N, O, K]; ``hessian`` float32 [N, K, K], X^T X of the inputs; ``damping`` float32 [N] is
    the share of its mean diagonal that is added. A matrix whose Hessian is zero is rounded to nearest.
    """
    weight = weight.to(torch.float32, copy=True)  # it is worked on in place
    factor = _inverse_factor(hessian, damping)
    decoded = torch.empty_like(weight)
    scales = []
    width = weight.shape[-1]
    for start in range(0, width, _GROUP):
        end = min(start + _GROUP, width)
        group = weight[..., start:end].clone()
        local = factor[:, start:end, start:end]
        errors = torch.empty_like(group)
        for column in range(end - start):
            if column % BLOCK_SIZE == 0:
                scale = search_mse(group[..., column : column + BLOCK_SIZE], global_scale)
                step = scale[..., 0].float() * global_scale[:, None]
                scales.append(scale)
            value = group[..., column]
            nearest = rounded(value / step).mul_(step)
            decoded[..., start + column] = nearest
            error = (value - nearest) / local[:, column, column, None]
            errors[..., column] = error
            group[..., column + 1 :] -= error.unsqueeze(-1) * local[:, column, None, column + 1 :]
        weight[..., end:] -= errors @ factor[:, start:end, end:]
    return decoded, torch.cat(scales, dim=-1)


def added_to_diagonal(hessian: torch.Tensor, damping: torch.Tensor) -> torch.Tensor:
    """What damping adds to the diagonal of each Hessian, float32 [N]."""
    mean = hessian.diagonal(dim1=-2, dim2=-1).mean(-1)
    # An input that is always zero must not make the matrix singular, nor an expert without any input.
    return torch.where(mean > 0, damping * mean, torch.ones_like(mean))


def _inverse_factor(hessian: torch.Tensor, damping: torch.Tensor) -> torch.Tensor:
    """The upper Cholesky factor of each damped Hessian's inverse, float32 [N, K, K]."""
    added = added_to_diagonal(hessian, damping)
    damped = hessian + torch.diag_embed(added[:, None].expand(hessian.shape[:-1]))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True)  # type: ignore[no-any-return]
