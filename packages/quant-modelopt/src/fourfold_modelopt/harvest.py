"""From a calibrated model to canonical tensors, one target at a time.

Values are computed by the functions that ModelOpt's ``export_hf_checkpoint`` uses, so that its bytes come out; the
export itself would hold the whole quantized state in memory and tie names, config and values together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from modelopt.torch.export.model_config import QUANTIZATION_NVFP4
from modelopt.torch.export.quant_utils import to_quantized_weight
from torch import nn

from fourfold.config import KVCache, Scheme
from fourfold.errors import QuantizationError
from fourfold.nvfp4 import BLOCK_SIZE, E4M3_MAX, NVFP4Weight
from fourfold_modelopt.linears import QuantizedLinear
from fourfold_modelopt.scales import block_scale, global_scale, input_global_scale

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fourfold.artifact import ArtifactWriter
    from fourfold.interfaces.quantizer import QuantizeJob
    from fourfold.progress import Progress


def quantized_weight(linear: QuantizedLinear) -> NVFP4Weight:
    """A target's weight [O, K] in NVFP4, on the CPU. Raises :class:`QuantizationError` for a weight all of zeros."""
    weight, quantizer = linear.covered_weight, linear.weight_quantizer
    scale = global_scale(quantizer).to(weight.device)
    if not bool(scale.isfinite() & (scale > 0)):
        raise QuantizationError(
            f"{linear.module.name}: global scale {scale.item():g}; its scale group holds zeros, NaN or infinity only"
        )
    blocks = block_scale(quantizer, weight)
    packed = to_quantized_weight(weight.to(torch.bfloat16), blocks, QUANTIZATION_NVFP4, scale, BLOCK_SIZE)
    return NVFP4Weight(packed[linear.rows].cpu(), blocks[linear.rows].cpu(), scale.cpu())


def write_weights(
    linears: Sequence[QuantizedLinear], job: QuantizeJob, artifact: ArtifactWriter, progress: Progress
) -> None:
    """Give every target to ``artifact``, in order."""
    progress.begin("write weights", total=len(linears), unit="module")
    for linear in linears:
        rounds_inputs = job.recipe.scheme_of(linear.module.name) is Scheme.W4A4
        input_scale = input_global_scale(linear.input_quantizer) if rounds_inputs else None
        artifact.add_weight(linear.module, quantized_weight(linear), input_scale)
        progress.advance()


def write_kv_scales(model: nn.Module, job: QuantizeJob, artifact: ArtifactWriter) -> None:
    """FP8 scales of every layer's keys and values: amax / 448, as ModelOpt exports them."""
    if job.recipe.kv_cache is not KVCache.FP8:
        return
    for name in attention_modules(job):
        attention: Any = model.get_submodule(name)
        scales = []
        for quantizer in (attention.k_bmm_quantizer, attention.v_bmm_quantizer):
            if quantizer.amax is None:
                raise QuantizationError(f"{name}: no keys or values were seen, so there is no KV-cache scale")
            scales.append(quantizer.amax.float() / E4M3_MAX)
        artifact.add_kv_scales(name, *scales)


def attention_modules(job: QuantizeJob) -> tuple[str, ...]:
    """Names of all text attention modules, in layer order."""
    return tuple(m.name.rpartition(".")[0] for m in job.gemma.linears.values() if m.projection == "k_proj")
