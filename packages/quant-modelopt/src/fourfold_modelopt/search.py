"""Searching block scales: MSE over all FP8 scales, four-over-six, local Hessian.

ModelOpt's calibrators do the searching; this module drives them over the targets, counts, and refuses a search that
searched nothing (ModelOpt's own log then says ``MSE weight calibration: 0it`` and goes on). A candidate is judged by
the weight it decodes to after export: block scales by ModelOpt's export function, rounding by Fourfold's codec, which
ModelOpt's kernels equal. On CUDA its fused Triton kernels take the MSE and Hessian searches over.

Shape letters: O out features, K in features, G = K/16 blocks, N = O x G blocks of a matrix, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from modelopt.torch.quantization.calib import MseCalibrator, NVFP4MSECalibrator
from torch import nn

from fourfold.errors import QuantizationError
from fourfold.nvfp4 import BLOCK_SIZE, round_to_e2m1
from fourfold_modelopt.linears import QuantizedLinear
from fourfold_modelopt.scales import decode_steps

if TYPE_CHECKING:
    from fourfold.progress import Progress

#: Four-over-six tries a block's amax as it is (largest value at 6) and times 1.5 (at 4).
_FOUR_OVER_SIX = {"start_multiplier": 1.0, "stop_multiplier": 1.5, "step_size": 0.5}
#: Axis that counts blocks once a weight is seen as [N, 16].
_BLOCKS = 0


class LocalHessians:
    """H = X^T X / T of every 16 columns, float32 [G, 16, 16], for every scale group; gate and up see one input."""

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self._tokens: dict[str, int] = {}

    @contextmanager
    def watching(self, linears: Iterable[QuantizedLinear]) -> Iterator[None]:
        """Gather from every forward pass inside the block; weights are left unrounded there, inputs are not."""
        linears = tuple(linears)
        first = {linear.module.scale_group: linear for linear in reversed(linears)}
        handles = [linear.holder.register_forward_pre_hook(self._hook(group)) for group, linear in first.items()]
        for linear in linears:
            linear.weight_quantizer.disable()
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            for linear in linears:
                linear.weight_quantizer.enable()

    def _hook(self, group: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def gather(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
            x = inputs[0].detach().reshape(-1, inputs[0].shape[-1]).float()
            blocks = x.T.reshape(-1, BLOCK_SIZE, x.shape[0])
            product = blocks @ blocks.transpose(-1, -2)
            self._sums[group] = self._sums[group] + product if group in self._sums else product
            self._tokens[group] = self._tokens.get(group, 0) + x.shape[0]

        return gather

    def get(self, group: str) -> torch.Tensor | None:
        """H of a group, or None where no token came."""
        tokens = self._tokens.get(group, 0)
        return self._sums[group] / tokens if tokens else None


def search_block_scales(
    linears: Sequence[QuantizedLinear], algorithm: str, hessians: LocalHessians | None, progress: Progress
) -> int:
    """Replace every target's block amaxes by the best found; returns the number of matrices searched.

    Raises :class:`QuantizationError` when there was nothing to search.
    """
    distinct = {id(linear.weight_quantizer): linear for linear in linears}
    progress.begin("search block scales", total=len(distinct), unit="matrix")
    searched = 0
    for linear in distinct.values():
        hessian = hessians.get(linear.module.scale_group) if hessians else None
        searched += _search(linear, algorithm, hessian)
        progress.advance()
    if searched == 0:
        raise QuantizationError(f"{algorithm}: no weight was searched, so the result would be plain max")
    return searched


def _search(linear: QuantizedLinear, algorithm: str, hessian: torch.Tensor | None) -> bool:
    quantizer, weight = linear.weight_quantizer, linear.covered_weight
    if quantizer.amax is None or getattr(quantizer, "global_amax", None) is None:
        return False
    amax = quantizer.amax.clone()

    def decode(blocks: torch.Tensor, candidate: torch.Tensor) -> torch.Tensor:
        """Blocks [N, 16] as they decode when their amax is ``candidate``."""
        quantizer.amax = candidate.reshape(amax.shape)
        steps = decode_steps(quantizer, weight).reshape(-1, 1)
        return round_to_e2m1(blocks / steps) * steps

    calibrator: MseCalibrator
    if algorithm == "four-over-six":
        calibrator = MseCalibrator(amax=amax, axis=_BLOCKS, quant_func=decode, **_FOUR_OVER_SIX)
    else:
        calibrator = NVFP4MSECalibrator(
            amax=amax,
            axis=_BLOCKS,
            global_amax=quantizer.global_amax,
            quant_func=decode,
            error_func=None if hessian is None else _hessian_error(hessian),
            hessian=hessian,
        )
    calibrator.collect(weight.reshape(-1, BLOCK_SIZE))
    best = calibrator.compute_amax()
    if best is None:
        quantizer.amax = amax
        return False
    quantizer.amax = best.reshape(amax.shape)
    return True


def _hessian_error(hessian: torch.Tensor) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """dw^T H dw of every block, spread evenly over the block's 16 values so that summing them gives it back."""

    def error(blocks: torch.Tensor, decoded: torch.Tensor) -> torch.Tensor:
        difference = (blocks - decoded).reshape(-1, hessian.shape[0], BLOCK_SIZE)
        loss = torch.einsum("ogi,gij,ogj->og", difference, hessian, difference)
        return (loss.reshape(-1, 1) / BLOCK_SIZE).expand(-1, BLOCK_SIZE)

    return error
