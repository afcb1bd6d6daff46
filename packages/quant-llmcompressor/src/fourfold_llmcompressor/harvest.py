"""From llm-compressor's quantized modules to canonical tensors, one module at a time.

The bytes come out of compressed-tensors' own compressor, the one that ``save_pretrained`` runs, so they are
its by construction. Its global scales are divisors; both directions are handed on (see
:mod:`fourfold.artifact`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.config import CompressionFormat
from compressed_tensors.utils import get_direct_state_dict
from torch import nn

from fourfold.nvfp4 import NVFP4Weight

_COMPRESSOR = BaseCompressor.get_value_from_registry(CompressionFormat.nvfp4_pack_quantized.value)


@dataclass(frozen=True)
class HarvestedWeight:
    """A linear's canonical weight, and the divisor it was made with (float32 [])."""

    weight: NVFP4Weight
    encode_scale: torch.Tensor


def harvest(linear: nn.Module) -> HarvestedWeight:
    """Compress one calibrated linear; the module keeps its state."""
    state = _COMPRESSOR.compress(get_direct_state_dict(linear), linear.quantization_scheme)
    encode_scale = state["weight_global_scale"].detach().cpu().reshape(())
    weight = NVFP4Weight(state["weight_packed"].cpu(), state["weight_scale"].cpu(), encode_scale.reciprocal())
    return HarvestedWeight(weight, encode_scale)
