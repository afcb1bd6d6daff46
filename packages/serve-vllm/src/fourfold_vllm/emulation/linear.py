"""NVFP4 linears of both layouts: vLLM's own loading and merging of scales, our product."""

from __future__ import annotations

from typing import Any

import torch
from vllm.model_executor.kernels.linear.nvfp4.base import NvFp4LinearKernel, NvFp4LinearLayerConfig
from vllm.model_executor.layers.linear import register_weight_loader_v2_supported_method
from vllm.model_executor.layers.quantization.compressed_tensors.schemes import CompressedTensorsW4A4Fp4
from vllm.model_executor.layers.quantization.modelopt import ACT, WEIGHT, ModelOptLinearMethod, Shapes
from vllm.model_executor.utils import replace_parameter

from fourfold_vllm.emulation.numerics import decode_blocks
from fourfold_vllm.emulation.operators import nvfp4_linear
from fourfold_vllm.emulation.settings import Decode, Settings


class EmulatedNvFp4LinearKernel(NvFp4LinearKernel):
    """Runs on what vLLM's post-load step leaves: its merged scales.

    ``layer.weight`` uint8 [O, P], ``layer.weight_scale`` float8_e4m3fn [O, G], ``layer.weight_global_scale`` and, for
    W4A4, ``layer.input_global_scale`` with its reciprocal ``input_global_scale_inv``, float32 [].
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__(NvFp4LinearLayerConfig())
        self.settings = settings

    @classmethod
    def is_supported(cls, compute_capability: int | None = None) -> tuple[bool, str | None]:  # noqa: ARG003 - vLLM's signature
        """Everywhere: plain torch."""
        return True, None

    @classmethod
    def can_implement(cls, config: NvFp4LinearLayerConfig) -> tuple[bool, str | None]:  # noqa: ARG003 - vLLM's signature
        """Every NVFP4 linear."""
        return True, None

    def process_weights_after_loading(self, layer: Any) -> None:
        """Decode the weight if it is to be decoded once, and compute the factor of the sum."""
        output_scale = layer.weight_global_scale.data.to(torch.float32)
        self.encode_scale: torch.Tensor | None = None
        if self.settings.quantize_activations and hasattr(layer, "input_global_scale_inv"):
            self.encode_scale = layer.input_global_scale_inv.data.to(torch.float32)
            output_scale = output_scale * layer.input_global_scale.data.to(torch.float32)
        self.output_scale = output_scale
        self.dtype = layer.params_dtype
        if self.settings.decode is Decode.ONCE:
            decoded = decode_blocks(layer.weight.data, layer.weight_scale.data, self.dtype)
            replace_parameter(layer, "weight", decoded)
            replace_parameter(layer, "weight_scale", None)

    def apply_weights(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """``x`` [..., K] to [..., O]."""
        scales = layer.weight_scale, self.output_scale, self.encode_scale
        out: torch.Tensor = nvfp4_linear(x, layer.weight, *scales, bias)
        return out


# Both layouts name the kernel themselves: vLLM's selection would find a registered one for W4A4, but has a closed list
# of GPU kernels for W4A16.


@register_weight_loader_v2_supported_method
class EmulatedModelOptLinearMethod(ModelOptLinearMethod):
    """ModelOpt's layout. vLLM's loader knows the class by the decorator, not by inheritance."""

    def __init__(self, method: ModelOptLinearMethod, settings: Settings) -> None:
        super().__init__(method.spec, method.ctx, method.fmt)
        self.settings = settings

    def create_weights(
        self,
        layer: Any,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs: Any,
    ) -> None:
        """As the parent's, but for the choice of a kernel."""
        loader = extra_weight_attrs.get("weight_loader")
        layer.logical_widths = output_partition_sizes
        layer.input_size_per_partition = input_size_per_partition
        layer.output_size_per_partition = sum(output_partition_sizes)
        layer.params_dtype = params_dtype
        shapes = Shapes(output_partition_sizes, input_size_per_partition, params_dtype)
        self.wkey.create_weights(layer, WEIGHT, self.ctx, shapes, loader)
        if self.akey:
            self.akey.create_weights(layer, ACT, self.ctx, shapes, loader)
        self.fmt.extra_weights(layer, shapes, self.ctx, loader)
        self.kernel = EmulatedNvFp4LinearKernel(self.settings)


class EmulatedCompressedTensorsW4A4Fp4(CompressedTensorsW4A4Fp4):
    """compressed-tensors' layout."""

    def __init__(self, settings: Settings, *, use_a16: bool) -> None:
        self.use_a16 = use_a16
        self.kernel = EmulatedNvFp4LinearKernel(settings)
        self.group_size = 16

    def create_weights(self, layer: Any, *args: Any, **kwargs: Any) -> None:
        """As the parent's."""
        layer.params_dtype = kwargs["params_dtype"]
        super().create_weights(layer, *args, **kwargs)
