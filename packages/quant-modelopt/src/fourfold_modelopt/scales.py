"""Scales out of calibrated quantizers, computed by ModelOpt's own functions, so that they equal its export's.

Shape letters: O out features, K in features, G = K/16 blocks.
"""

from __future__ import annotations

import torch
from modelopt.torch.quantization.nn import TensorQuantizer
from modelopt.torch.quantization.qtensor import NVFP4QTensor


def global_scale(quantizer: TensorQuantizer) -> torch.Tensor:
    """A weight quantizer's global scale, float32 []: amax / 2688, or amax / 1536 under four-over-six."""
    scale: torch.Tensor = NVFP4QTensor.get_weights_scaling_factor_2_from_quantizer(quantizer)
    return scale.reshape(())


def block_scale(quantizer: TensorQuantizer, weight: torch.Tensor) -> torch.Tensor:
    """A weight quantizer's block scales, float8_e4m3fn [O, G], for ``weight`` [O, K]."""
    scale = global_scale(quantizer).to(weight.device)
    blocks: torch.Tensor = NVFP4QTensor.get_weights_scaling_factor_from_quantizer(quantizer, weight, scale)[0]
    return blocks


def decode_steps(quantizer: TensorQuantizer, weight: torch.Tensor) -> torch.Tensor:
    """What a code of 1.0 decodes to in every block, float32 [O, G]."""
    return block_scale(quantizer, weight).float() * global_scale(quantizer).to(weight.device)


def input_global_scale(quantizer: TensorQuantizer) -> torch.Tensor | None:
    """An input quantizer's global scale, float32 []; None where it is switched off or saw nothing."""
    scale: torch.Tensor | None = NVFP4QTensor.get_activation_scaling_factor(quantizer)
    return None if scale is None else scale.reshape(())
