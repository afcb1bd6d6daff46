"""NVFP4 experts of both layouts: vLLM's own parameters and loader, our products.

The names of the two classes matter: vLLM's expert loader looks for ``ModelOpt`` and ``compressed`` in them, and under
another name it loads input scales wrongly without an error.

Scales are merged as vLLM does it: an expert's up projection is decoded with its gate's global scale, and an input scale
is the largest of gate and up, or of the layer's experts under ``FOURFOLD_INPUT_SCALE=merged``.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from vllm.config import CUDAGraphMode, get_current_vllm_config
from vllm.model_executor.layers.fused_moe.config import FusedMoEConfig
from vllm.model_executor.layers.fused_moe.fused_moe_method_base import FusedMoEMethodBase
from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors_moe.compressed_tensors_moe_w4a4_nvfp4 import (  # noqa: E501
    CompressedTensorsW4A4Nvfp4MoEMethod,
)
from vllm.model_executor.layers.quantization.modelopt import ModelOptNvFp4Config, ModelOptNvFp4FusedMoE

from fourfold.errors import ConfigError
from fourfold_vllm.emulation.numerics import decode_blocks
from fourfold_vllm.emulation.operators import ACTIVATIONS, nvfp4_experts
from fourfold_vllm.emulation.settings import Decode, InputScale, Settings


class _Projection:
    """``w13`` or ``w2`` of a layer after loading: weight, block scale; a float32 factor and encode scale an expert."""

    def __init__(
        self,
        packed: torch.Tensor,
        block_scale: torch.Tensor,
        global_scale: torch.Tensor,
        input_scale: torch.Tensor | None,
        *,
        settings: Settings,
        dtype: torch.dtype,
    ) -> None:
        """``global_scale`` [E] or [E, 2] (gate, up) and ``input_scale`` of that shape, or None, multiply on decode."""
        self.output_scale = global_scale[:, 0].contiguous() if global_scale.ndim == 2 else global_scale
        self.encode_scale: torch.Tensor | None = None
        if input_scale is not None:
            scale = input_scale.amax(1) if input_scale.ndim == 2 else input_scale
            if settings.input_scale is InputScale.MERGED:
                scale = scale.max().expand(packed.shape[0])
            self.encode_scale = scale.reciprocal().contiguous()
            self.output_scale = self.output_scale * scale
        self.weight = packed
        self.block_scale: torch.Tensor | None = block_scale
        if settings.decode is Decode.ONCE:
            self.weight, self.block_scale = decode_experts(packed, block_scale, dtype), None


def decode_experts(packed: torch.Tensor, block_scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Code x block scale [E, O, K] in ``dtype``; one expert at a time, as the float32 in between is large."""
    out = torch.empty(*packed.shape[:-1], packed.shape[-1] * 2, dtype=dtype, device=packed.device)
    for expert in range(packed.shape[0]):
        out[expert] = decode_blocks(packed[expert], block_scale[expert], dtype)
    return out


class _EmulatedExperts(FusedMoEMethodBase):
    """What both layouts share; stands before vLLM's class, whose parameters and loader are kept."""

    use_a16: bool
    settings: Settings

    def _prepare(self, moe: FusedMoEConfig, settings: Settings) -> None:
        """Instead of the parent's constructor, which chooses a GPU backend. Refuses what is not computed here."""
        FusedMoEMethodBase.__init__(self, moe)
        self.settings = settings
        if moe.activation.value not in ACTIVATIONS:
            raise ConfigError(
                f"the NVFP4 emulation knows the expert activations {', '.join(ACTIVATIONS)}, not {moe.activation.value}"
            )
        if moe.moe_parallel_config.dp_size > 1:
            raise ConfigError("the NVFP4 emulation does not run data parallel; use tensor or expert parallel")
        mode = get_current_vllm_config().compilation_config.cudagraph_mode
        if moe.device != "cpu" and mode not in (None, CUDAGraphMode.NONE):
            raise ConfigError("the NVFP4 emulation of experts cannot be captured in a CUDA graph; add --enforce-eager")

    def process_weights_after_loading(self, layer: Any) -> None:
        """Take over the loaded parameters."""
        quantize = self.settings.quantize_activations and not self.use_a16
        for name in ("w13", "w2"):
            packed, block_scale, global_scale, input_scale = self.take(layer, name)
            projection = _Projection(
                packed,
                block_scale,
                global_scale,
                input_scale if quantize else None,
                settings=self.settings,
                dtype=self.moe.in_dtype,
            )
            setattr(self, name, projection)

    @abstractmethod
    def take(self, layer: Any, name: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Remove from ``layer``: packed, block scale, global and input scale (they multiply)."""

    def get_fused_moe_quant_config(self, layer: Any) -> None:
        """None: no kernel of vLLM's is used."""

    @property
    def supports_eplb(self) -> bool:
        """Experts are not moved between ranks here."""
        return False

    def apply(
        self,
        layer: Any,
        x: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        shared_experts: Any,
        shared_experts_input: torch.Tensor | None,
    ) -> torch.Tensor:
        """The experts' weighted sum, [T, H]."""
        w13, w2 = self.w13, self.w2
        out: torch.Tensor = nvfp4_experts(
            x, topk_weights, topk_ids, layer.expert_map,
            w13.weight, w13.block_scale, w13.output_scale, w13.encode_scale,
            w2.weight, w2.block_scale, w2.output_scale, w2.encode_scale,
            self.moe.activation.value,
        )  # fmt: skip
        return out


def _pop(layer: Any, name: str) -> torch.Tensor:
    """A parameter's data; the layer lets go of it."""
    data: torch.Tensor = getattr(layer, name).data
    delattr(layer, name)
    return data


class EmulatedModelOptNvFp4FusedMoE(_EmulatedExperts, ModelOptNvFp4FusedMoE):
    """ModelOpt's layout: scales multiply."""

    def __init__(self, quant_config: ModelOptNvFp4Config, moe_config: FusedMoEConfig, settings: Settings) -> None:
        self._prepare(moe_config, settings)
        self.quant_config = quant_config
        self.use_a16 = quant_config.quant_method == "W4A16_NVFP4"
        self.per_token_activation = False
        # Backends that merge over the layer's experts read those of other ranks too.
        self.use_global_sf = settings.input_scale is InputScale.MERGED

    def take(self, layer: Any, name: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """See the parent."""
        suffixes = ("weight", "weight_scale", "weight_scale_2", "input_scale")
        packed, block_scale, global_scale, input_scale = (_pop(layer, f"{name}_{suffix}") for suffix in suffixes)
        return packed, block_scale, global_scale, input_scale


class EmulatedCompressedTensorsNvfp4MoEMethod(_EmulatedExperts, CompressedTensorsW4A4Nvfp4MoEMethod):
    """compressed-tensors' layout: scales divide on disk."""

    def __init__(self, moe: FusedMoEConfig, settings: Settings, *, use_a16: bool) -> None:
        self._prepare(moe, settings)
        self.use_a16 = use_a16
        self.group_size = 16
        self.use_global_sf = False

    def take(self, layer: Any, name: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """See the parent."""
        suffixes = ("weight_packed", "weight_scale", "weight_global_scale", "input_global_scale")
        packed, block_scale, global_encode, input_encode = (_pop(layer, f"{name}_{suffix}") for suffix in suffixes)
        return packed, block_scale, global_encode.reciprocal(), input_encode.reciprocal()
