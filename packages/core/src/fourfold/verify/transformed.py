"""Weights changed on purpose before rounding (AWQ, SmoothQuant): the source's, up to factors that cancel.

Such algorithms multiply each row of an ``up_proj`` by a factor and divide the same column of its ``down_proj`` by it;
the output stays. A manifest says for which modules. Of that nothing is believed but the name: the factors are found
again in the decoded weight, one a row or one a column, the weight is held to the source under them like any other, and
a pair's factors must cancel.

Shape letters: O out features, K in features.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from fourfold.nvfp4 import NVFP4Weight
    from fourfold.verify.checkpoint import Checkpoint
    from fourfold.verify.rule import Look

UP, DOWN = "up_proj", "down_proj"
#: Least squares over a row or column of rounded weights finds a factor to about 0.1 / sqrt(O or K).
MAX_FACTOR_ERROR = 0.1


def find_factors(weight: NVFP4Weight, source: torch.Tensor, *, of_rows: bool) -> torch.Tensor:
    """float32 [O, 1] or [1, K], not negative: what each row or column of ``source`` [O, K] is multiplied with.

    By least squares; 1 where the source is zero. Factors of some other weight come out near 0, and leave it unlike the
    source.
    """
    import torch

    decoded, own = weight.dequantize(), source.to(torch.float32)
    axis = 1 if of_rows else 0
    energy = own.square().sum(axis, keepdim=True)
    factors: torch.Tensor = ((decoded * own).sum(axis, keepdim=True) / energy).clamp(min=0)
    return torch.where(energy > 0, factors, torch.ones_like(factors))


def factors_cancel(look: Look, checkpoint: Checkpoint) -> None:
    """Only pairs of ``up_proj`` and ``down_proj`` are transformed, and the factors of a pair cancel."""
    for name, factors in checkpoint.factors.items():
        parent, _, projection = name.rpartition(".")
        look.count()
        if projection not in (UP, DOWN):
            look.wrong(
                name, found="transformed by the manifest", expected=f"{UP} or {DOWN}",
                message=f"{name} is marked as transformed, but nothing can undo factors of a {projection}",
            )  # fmt: skip
            continue
        partner = checkpoint.factors.get(f"{parent}.{DOWN if projection == UP else UP}")
        if projection == DOWN and partner is not None:
            continue  # said once, of up_proj
        product = factors.flatten() * (1.0 if partner is None else partner.flatten())
        off = float((product - 1).abs().max())
        if not off <= MAX_FACTOR_ERROR:
            worst = int((product - 1).abs().argmax())
            look.wrong(
                f"{parent}: channel {worst}", found=f"up_proj x down_proj is multiplied by {float(product[worst]):.3g}",
                expected="1", message=f"{parent}: the factors of up_proj's rows and down_proj's columns do not cancel",
            )  # fmt: skip
