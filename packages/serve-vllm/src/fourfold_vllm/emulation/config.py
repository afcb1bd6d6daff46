"""vLLM's quantization configs of both NVFP4 layouts, with our linears and experts in place of a GPU's.

They take vLLM's names (``modelopt_fp4``, ``modelopt_mixed``, ``compressed-tensors``), which vLLM allows: a registered
config goes before a built-in one. Everything that is not NVFP4 (FP8 layers, the KV cache) is left to the parents.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from vllm.config import get_current_vllm_config
from vllm.logger import init_logger
from vllm.model_executor.layers.fused_moe import RoutedExperts
from vllm.model_executor.layers.quantization import register_quantization_config
from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors import CompressedTensorsConfig
from vllm.model_executor.layers.quantization.modelopt import (
    ModelOptLinearMethod,
    ModelOptMixedPrecisionConfig,
    ModelOptNvFp4Config,
)
from vllm.model_executor.layers.quantization.utils.quant_utils import kNvfp4Static

from fourfold_vllm.emulation.experts import EmulatedCompressedTensorsNvfp4MoEMethod, EmulatedModelOptNvFp4FusedMoE
from fourfold_vllm.emulation.linear import EmulatedCompressedTensorsW4A4Fp4, EmulatedModelOptLinearMethod
from fourfold_vllm.emulation.settings import Settings

logger = init_logger(f"vllm.{__name__}")


class _Emulated:
    """What the three configs share. ``settings`` are the process's."""

    settings: ClassVar[Settings]

    def _mark_graphs(self) -> None:
        """Let vLLM's cache of compiled graphs tell our settings apart: it knows nothing of our variables."""
        config = get_current_vllm_config()
        if isinstance(config.additional_config, dict):
            config.additional_config["fourfold_emulation"] = self.settings.graph_key

    def _emulated_linear(self, method: Any) -> Any:
        """ModelOpt's linear method, ours if it is NVFP4."""
        if type(method) is ModelOptLinearMethod and method.spec.weight == kNvfp4Static:
            return EmulatedModelOptLinearMethod(method, self.settings)
        return method


class EmulatedModelOptNvFp4Config(_Emulated, ModelOptNvFp4Config):
    """All quantized layers are NVFP4."""

    def FusedMoEMethodCls(self, quant_config: Any, moe_config: Any) -> EmulatedModelOptNvFp4FusedMoE:  # noqa: N802 - vLLM's name
        """Called by vLLM as if it were a class."""
        return EmulatedModelOptNvFp4FusedMoE(quant_config, moe_config, self.settings)

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> Any:
        """As the parent's, with our linears."""
        self._mark_graphs()
        return self._emulated_linear(super().get_quant_method(layer, prefix))

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        """Float32 too: the dtype to compare implementations in."""
        return [*super().get_supported_act_dtypes(), torch.float32]


class EmulatedModelOptMixedPrecisionConfig(_Emulated, ModelOptMixedPrecisionConfig):
    """Each layer names its format."""

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> Any:
        """NVFP4 experts are resolved here: the parent would build a method that asks for a GPU backend."""
        self._mark_graphs()
        if isinstance(layer, RoutedExperts) and not self.is_layer_excluded(prefix):
            formats = {"NVFP4": self.nvfp4_config, "W4A16_NVFP4": self.w4a16_nvfp4_config}
            config = formats.get(self._resolve_quant_algo(prefix))
            if config is not None:
                return EmulatedModelOptNvFp4FusedMoE(config, layer.moe_config, self.settings)
        return self._emulated_linear(super().get_quant_method(layer, prefix))

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        """See :class:`EmulatedModelOptNvFp4Config`."""
        return [*super().get_supported_act_dtypes(), torch.float32]


class EmulatedCompressedTensorsConfig(_Emulated, CompressedTensorsConfig):
    """compressed-tensors' layout, NVFP4 or mixed."""

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> Any:
        """NVFP4 experts are resolved here, everything else by the parent."""
        self._mark_graphs()
        if isinstance(layer, RoutedExperts):
            self._add_fused_moe_to_target_scheme_map()
            names = (layer.ckpt_gate_proj_name, layer.ckpt_up_proj_name, layer.ckpt_down_proj_name)
            schemes = [self.get_scheme_dict(layer, f"{prefix}.0.{name}") for name in names]
            first = schemes[0]
            if first and all(scheme == first for scheme in schemes) and self._is_nvfp4_format(first.get("weights")):
                inputs = first.get("input_activations")
                if inputs is None or self._is_nvfp4_format(inputs):
                    return EmulatedCompressedTensorsNvfp4MoEMethod(
                        layer.moe_config, self.settings, use_a16=inputs is None
                    )
        return super().get_quant_method(layer, prefix)

    def _get_scheme_from_parts(self, weight_quant: Any, input_quant: Any, *args: Any, **kwargs: Any) -> Any:
        if self._is_nvfp4_format(weight_quant) and (input_quant is None or self._is_nvfp4_format(input_quant)):
            return EmulatedCompressedTensorsW4A4Fp4(self.settings, use_a16=input_quant is None)
        return super()._get_scheme_from_parts(weight_quant, input_quant, *args, **kwargs)


def register_configs(settings: Settings) -> None:
    """Put the three configs in the place of vLLM's."""
    _Emulated.settings = settings
    register_quantization_config("modelopt_fp4")(EmulatedModelOptNvFp4Config)
    register_quantization_config("modelopt_mixed")(EmulatedModelOptMixedPrecisionConfig)
    register_quantization_config("compressed-tensors")(EmulatedCompressedTensorsConfig)
    logger.info_once("Fourfold computes NVFP4 in this process: %s", settings.graph_key)
