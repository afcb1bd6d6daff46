"""The NVFP4 reference codec: quantize, dequantize, fake-quantize, in plain torch on any device.

It is the judge of every backend: with a policy named (:mod:`fourfold.nvfp4.scales`) it reproduces that
producer's packed bytes and block scales. All arithmetic is float32 after the amax; inputs are never modified.

Shape letters: O out features, K in features, G = K/16 blocks, P = K/2 bytes; ``...`` leading axes, such as E.
"""

from __future__ import annotations

import torch

from fourfold.nvfp4.constants import BLOCK_SIZE, E2M1_MAX, E4M3_MAX
from fourfold.nvfp4.e2m1 import encode_e2m1, pack_codes, round_to_e2m1
from fourfold.nvfp4.scales import (
    BlockScalePolicy,
    block_scale_from_amax,
    check_global_scale,
    encode_scale_from_amax,
    global_scale_from_amax,
)
from fourfold.nvfp4.tensor import NVFP4Weight, expand_global_scale, split_blocks

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def block_amax(weight: torch.Tensor) -> torch.Tensor:
    """Largest absolute value of every block: [..., G] of ``weight`` [..., K], in its dtype."""
    return split_blocks(weight).abs().amax(-1)


def quantize(
    weight: torch.Tensor,
    *,
    global_scale: torch.Tensor | None = None,
    global_amax: torch.Tensor | None = None,
    block_scale: torch.Tensor | None = None,
    policy: BlockScalePolicy = BlockScalePolicy.FOURFOLD,
) -> NVFP4Weight:
    """Quantize ``weight`` [..., O, K] (float32, bfloat16 or float16).

    Args:
        weight: K a multiple of 16; contiguous or not.
        global_scale: float32 [] or [...], decode direction. Without it, one a matrix from amax over [O, K].
        global_amax: instead of ``global_scale``, the amax of the scale group the weight belongs to, in the
            weight's dtype, [] or [...]. Under ``COMPRESSED_TENSORS`` the only exact way to share a scale, as
            a float32 reciprocal does not always invert.
        block_scale: float8_e4m3fn [..., O, G], for scales searched elsewhere; needs ``global_scale`` too.
        policy: whose arithmetic to follow.

    Raises:
        TypeError: a dtype other than the above.
        ValueError: an empty weight, K not a multiple of 16, NaN or infinity, scales that contradict each
            other or cannot be represented.
    """
    _check_weight(weight)
    if global_scale is not None and global_amax is not None:
        raise ValueError("give global_scale or global_amax, not both")
    if block_scale is not None and global_scale is None:
        raise ValueError("block_scale needs the global_scale it was computed with")
    amax = block_amax(weight)
    if not bool(amax.isfinite().all()):
        raise ValueError(f"weight of shape {list(weight.shape)} holds NaN or infinity; nothing sensible can be stored")
    encode_scale = None
    if global_scale is None:
        global_amax = amax.amax((-2, -1)) if global_amax is None else global_amax
        global_scale = global_scale_from_amax(global_amax, policy)
        if policy is BlockScalePolicy.COMPRESSED_TENSORS:
            encode_scale = encode_scale_from_amax(global_amax)
    elif policy is BlockScalePolicy.COMPRESSED_TENSORS:
        encode_scale = global_scale.reciprocal()
    check_global_scale(global_scale)
    if tuple(global_scale.shape) not in ((), tuple(weight.shape[:-2])):
        raise ValueError(
            f"global_scale has shape {list(global_scale.shape)}; weight {list(weight.shape)} needs "
            f"[] or {list(weight.shape[:-2])}"
        )
    encode = None if encode_scale is None else expand_global_scale(encode_scale)
    decode = expand_global_scale(global_scale)
    if block_scale is None:
        block_scale = block_scale_from_amax(amax, decode, policy, encode_scale=encode)
    else:
        _check_block_scale(block_scale, amax)
    step = block_scale.to(torch.float32) * decode if encode is None else block_scale.to(torch.float32) / encode
    scaled = split_blocks(weight).to(torch.float32) / step.unsqueeze(-1)
    return NVFP4Weight(pack_codes(encode_e2m1(scaled).flatten(-2)), block_scale, global_scale)


def dequantize(weight: NVFP4Weight, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The decoded weight [..., O, K]; see :meth:`NVFP4Weight.dequantize`."""
    return weight.dequantize(dtype)


def fake_quantize(
    weight: torch.Tensor,
    *,
    global_scale: torch.Tensor | None = None,
    global_amax: torch.Tensor | None = None,
    block_scale: torch.Tensor | None = None,
    policy: BlockScalePolicy = BlockScalePolicy.FOURFOLD,
) -> torch.Tensor:
    """:func:`quantize`, then decode, in ``weight``'s dtype. Same arguments, same errors."""
    quantized = quantize(
        weight, global_scale=global_scale, global_amax=global_amax, block_scale=block_scale, policy=policy
    )
    return quantized.dequantize(weight.dtype)


def fake_quantize_activations(x: torch.Tensor, input_global_scale: torch.Tensor) -> torch.Tensor:
    """What W4A4 hardware and vLLM make of activations ``x`` [..., K]: static global, dynamic block scales.

    The rule, in float32, with r = 1 / ``input_global_scale``:
    block scale s = e4m3(min(r x (amax x (1/6)), 448)); code = e2m1(clamp(x x (1 / (s x (1/r))), -6, 6)), 0
    where s is 0; result = code x (s / r), in ``x``'s dtype. Unlike weights, a tiny block flushes to zero (its
    s rounds to 0), and the order multiplies by reciprocals where the weight's divides. Source: vLLM's
    ``ref_nvfp4_quant_dequant``, bit for bit but for the sign of zero.

    ``input_global_scale`` is float32, decode direction, [] (amax / (6 x 448) of the calibration data).
    Activations over that amax saturate, as they do when served.

    Raises:
        TypeError: another dtype. ValueError: K not a multiple of 16, an empty tensor, a scale not positive
        and finite.
    """
    _check_float(x, "x")
    check_global_scale(input_global_scale, "input_global_scale")
    if input_global_scale.numel() != 1:
        raise ValueError(f"input_global_scale must be one number, not of shape {list(input_global_scale.shape)}")
    r = input_global_scale.reshape(()).reciprocal()
    blocks = split_blocks(x.to(torch.float32))
    amax = blocks.abs().amax(-1, keepdim=True)
    s = (r * (amax * (1.0 / E2M1_MAX))).clamp(max=E4M3_MAX).to(torch.float8_e4m3fn).to(torch.float32)
    encode = torch.where(s == 0, torch.zeros_like(s), (s * r.reciprocal()).reciprocal())
    codes = round_to_e2m1((blocks * encode).clamp(-E2M1_MAX, E2M1_MAX))
    return (codes * (s / r)).flatten(-2).to(x.dtype)


def _check_weight(weight: torch.Tensor) -> None:
    _check_float(weight, "weight")
    if weight.ndim < 2:
        raise ValueError(f"weight has shape {list(weight.shape)}; expected [..., O, K]")


def _check_float(tensor: torch.Tensor, name: str) -> None:
    if tensor.dtype not in _FLOATS:
        raise TypeError(f"{name} must be float32, bfloat16 or float16, not {tensor.dtype}")
    if tensor.numel() == 0:
        raise ValueError(f"{name} of shape {list(tensor.shape)} is empty")
    if tensor.ndim == 0 or tensor.shape[-1] % BLOCK_SIZE:
        raise ValueError(
            f"{name} has shape {list(tensor.shape)}; the last axis must be a multiple of {BLOCK_SIZE} "
            "(leave such a layer unquantized)"
        )


def _check_block_scale(block_scale: torch.Tensor, amax: torch.Tensor) -> None:
    if block_scale.dtype != torch.float8_e4m3fn:
        raise TypeError(f"block_scale must be torch.float8_e4m3fn, not {block_scale.dtype}")
    if block_scale.shape != amax.shape:
        raise ValueError(f"block_scale has shape {list(block_scale.shape)}; the weight needs {list(amax.shape)}")
    value = block_scale.to(torch.float32)
    if not bool(((value > 0) & value.isfinite()).all()):
        raise ValueError("block_scale holds zero, negative or NaN scales; every block needs a positive one")
