"""NVFP4 fake quantization without CUDA: Fourfold's codec as a ModelOpt quantization backend.

ModelOpt's NVFP4 kernels need CUDA. Its public ``register_quant_backend`` lets a function take their place, by the
``backend`` attribute of a quantizer; the codec of :mod:`fourfold.nvfp4` stands there on a CPU, so that algorithms
which run the model with quantized inputs (local Hessian, GPTQ, AWQ clip) run. Three facts shape
this module:

- A static weight quantizer ignores its backend once calibrated. GPTQ therefore gets a helper of its own by
  ``register_gptq_helper``, which rounds through the codec and then switches the quantizer's rounding off: the
  weights lie on the grid already.
- GPTQ indexes one column of the matrix it just rounded, so :class:`_Columns` rounds that column alone.
- ModelOpt's GPTQ gives a module a new weight; the helper writes into the old one, on CUDA too, where nothing else of
  this module is used.
"""

from __future__ import annotations

from typing import Final

import torch
from modelopt.torch.quantization.nn import (
    TensorQuantizer,
    is_registered_quant_backend,
    register_quant_backend,
)
from modelopt.torch.quantization.utils.calib_utils import (
    GPTQHelper,
    gptq_blockwise_update,
    register_gptq_helper,
)

from fourfold.errors import QuantizationError
from fourfold.nvfp4 import (
    BLOCK_SIZE,
    BlockScalePolicy,
    fake_quantize,
    fake_quantize_activations,
    global_scale_from_amax,
    round_to_e2m1,
)
from fourfold_modelopt.scales import decode_steps

ACTIVATIONS: Final = "fourfold-activations"
WEIGHTS: Final = "fourfold-weights"
#: Attribute of a module after GPTQ: how many tokens its Hessian was made of.
GPTQ_TOKENS: Final = "fourfold_gptq_tokens"


def register() -> None:
    """Make both backends known to ModelOpt; a second call does nothing."""
    if not is_registered_quant_backend(ACTIVATIONS):
        register_quant_backend(ACTIVATIONS, _quantize_activations)
        register_quant_backend(WEIGHTS, _quantize_weight)
        register_gptq_helper(WEIGHTS, InPlaceGPTQ)


def _quantize_activations(inputs: torch.Tensor, quantizer: TensorQuantizer) -> torch.Tensor:
    """Activations [..., K] through the codec, with the calibrated amax.

    Quantized weights move tokens between experts, so one without amax may see some: it takes theirs, as ModelOpt does.
    """
    amax = inputs.abs().amax() if quantizer.amax is None else quantizer.amax
    if not bool(amax > 0):
        return inputs
    return fake_quantize_activations(inputs, global_scale_from_amax(amax.float().reshape(())))


def _quantize_weight(weight: torch.Tensor, quantizer: TensorQuantizer) -> torch.Tensor:
    """A weight [O, K] through the codec, block scales from its blocks, saturating as ModelOpt's do."""
    if quantizer.amax is None or quantizer.amax.numel() != 1:
        raise QuantizationError("a weight quantizer ran before it was calibrated; its amax is not one number")
    amax = quantizer.amax.float().reshape(())
    return fake_quantize(weight, global_amax=amax, policy=BlockScalePolicy.MODELOPT)


class _Columns:
    """What a matrix looks like when it is rounded to ``steps``, one column at a time: ``columns[:, j]``."""

    def __init__(self, weight: torch.Tensor, steps: torch.Tensor) -> None:
        self._weight, self._steps = weight, steps

    def __getitem__(self, index: tuple[slice, int]) -> torch.Tensor:
        rows, column = index
        step = self._steps[rows, column // BLOCK_SIZE]
        return round_to_e2m1(self._weight[rows, column] / step) * step


class InPlaceGPTQ(GPTQHelper):
    """ModelOpt's GPTQ that writes into the weight's own storage, a view of the fused experts, so memory does not grow.

    On a CPU it rounds through the codec, with the block scales that export will store.
    """

    def _blockwise_update(self, block_size: int) -> None:
        if self.module.weight.device.type != "cpu":
            super()._blockwise_update(block_size)
            return
        steps = decode_steps(self.module.weight_quantizer, self.module.weight)
        gptq_blockwise_update(self.weight, self.h_inv, block_size, lambda weight: _Columns(weight, steps))

    def update_weights(self, block_size: int, perc_damp: float) -> None:
        """Round the module's weight. On a CPU its quantizer has nothing left to do from then on."""
        # Asked for once the Hessians are gone: experts that no token reached are named in the manifest.
        setattr(self.module, GPTQ_TOKENS, self.n_samples)
        storage = self.module.weight.data
        super().update_weights(block_size, perc_damp)
        storage.copy_(self.module.weight.data)
        self.module.weight.data = storage
        if storage.device.type == "cpu":
            self.module.weight_quantizer.disable_quant()
