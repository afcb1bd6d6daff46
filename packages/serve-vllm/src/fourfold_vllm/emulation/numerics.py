"""NVFP4 products in plain torch, on any device, as FP4 tensor cores compute them.

Both operands enter as code x block scale: at most 6 significant bits, so exact in BF16, float16 and float32. Products
are accumulated in float32, and the two global scales multiply the sum; it is rounded once, to the serving dtype.
Nothing else is rounded: a decoded BF16 weight with its global scale folded in, which is how weight-only kernels and
other emulations compute, would be.

On CPU the accumulation is a float32 product. On CUDA, BF16 and float16 operands go to the tensor cores with a float32
result.

Shape letters: T tokens, O out features, K in features, P = K/2 bytes, G = K/16 blocks; ``...`` leading axes.
"""

from __future__ import annotations

import functools

import torch

from fourfold.nvfp4 import BLOCK_SIZE, E2M1_MAX, E4M3_MAX, decode_e2m1, round_to_e2m1, unpack_codes


def decode_blocks(packed_OP: torch.Tensor, block_scale_OG: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Code x block scale, [..., O, K] in ``dtype``: exact. The global scale is not in it.

    ``packed_OP`` is uint8, low nibble = even column; ``block_scale_OG`` float8_e4m3fn.
    """
    pairs = _byte_table(packed_OP.device).index_select(0, packed_OP.reshape(-1).to(torch.int32))
    blocks = pairs.view(torch.bfloat16).to(torch.float32).view(-1, BLOCK_SIZE)
    blocks.mul_(block_scale_OG.to(torch.float32).view(-1, 1))
    return blocks.view(*packed_OP.shape[:-1], packed_OP.shape[-1] * 2).to(dtype)


@functools.cache
def _byte_table(device: torch.device) -> torch.Tensor:
    """Both values of every byte, BF16, as one int32 a byte: [256]. A gather of 4 bytes replaces two of one value."""
    every_byte = torch.arange(256, dtype=torch.uint8, device=device).unsqueeze(-1)
    return decode_e2m1(unpack_codes(every_byte)).to(torch.bfloat16).view(torch.int32).reshape(256)


def quantize_activations(x_TK: torch.Tensor, encode_scale: torch.Tensor) -> torch.Tensor:
    """Code x block scale of activations, float32 [T, K]; times 1 / ``encode_scale`` it is the dequantized value.

    ``encode_scale`` is 1 / input global scale, float32, [] or [T]. Same rounding as
    :func:`fourfold.nvfp4.fake_quantize_activations`: a block's scale is cast to E4M3 first, saturating, and codes are
    rounded against what the cast left; a block whose scale rounds to 0 becomes 0.
    """
    r = encode_scale.view(-1, 1, 1)
    blocks = x_TK.to(torch.float32).view(x_TK.shape[0], -1, BLOCK_SIZE)
    amax = blocks.abs().amax(-1, keepdim=True)
    s = (r * (amax * (1.0 / E2M1_MAX))).clamp(max=E4M3_MAX).to(torch.float8_e4m3fn).to(torch.float32)
    encode = torch.where(s == 0, torch.zeros_like(s), (s * r.reciprocal()).reciprocal())
    codes = round_to_e2m1((blocks * encode).clamp_(-E2M1_MAX, E2M1_MAX))
    return codes.mul_(s).view(x_TK.shape)


def product(x_TK: torch.Tensor, weight_OK: torch.Tensor) -> torch.Tensor:
    """``x @ weight.T`` accumulated and returned in float32, [T, O]. Operands are float32, BF16 or float16."""
    if x_TK.device.type == "cuda" and weight_OK.dtype != torch.float32:
        return torch.mm(x_TK.to(weight_OK.dtype), weight_OK.t(), out_dtype=torch.float32)
    return torch.mm(x_TK.to(torch.float32), weight_OK.to(torch.float32).t())
