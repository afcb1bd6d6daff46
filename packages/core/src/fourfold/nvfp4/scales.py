"""From amax to scales: the one place where a global scale or a block scale is computed.

A policy names how one producer does it, so that its bytes can be reproduced and its differences explained.
amax is the largest absolute value of a block or a tensor and is never called a scale. All global scales here
are in decode direction (they multiply): ``global_scale = amax / (6 x 448)``.

What differs between the policies, and what it does:

==================  =======================  ==================  =====================================
..                  fourfold                 modelopt (0.47)     compressed-tensors (0.19)
==================  =======================  ==================  =====================================
arithmetic          float32                  float32             amax's own dtype, then float32
global scale        amax / 2688              amax / 2688         1 / encode scale; encode scale =
                                                                 (1/amax) x 2688, both roundings in
                                                                 amax's dtype
block scale         amax / (6 x global)      the same            encode scale x (amax/6), the quotient
                                                                 in amax's dtype
element             w / (block x global)     the same            w / (block / encode scale)
zero block          1.0                      1.0                 0.125
tiny block          at least 2^-9            at least 2^-9       rounds; 0 becomes 0.125
block scale > 448   refused                  saturates           saturates
all-zero tensor     refused                  NaN (refused here)  global scale 1.0
==================  =======================  ==================  =====================================

With BF16 weights, two BF16 roundings move compressed-tensors' global scale by up to 0.6 %, and with it every
block scale near a rounding boundary and every element near a tie: this, not the rounding to the grid, is why
the two toolchains' bytes differ on equal weights. In float16 its encode scale overflows for amax below 0.041
and the global scale silently becomes 1.0. A tiny block, whose scale would round to 0, loses everything under
compressed-tensors (0.125 is far above its values), and keeps its largest values under the other two. Zero
blocks decode to 0 under all.

ModelOpt divides by the Python number 2688, which CUDA turns into a product with its float32 reciprocal: on a
GPU its global scale can be one ulp off the CPU's. Its policy follows the device; ours divides truly on every
device. ModelOpt's static quantizers (MSE, four-over-six) compute ``(block amax / 6) x 448 / (global amax /
6)``, an order of its own that starts from searched amax; take their block scales as given (``quantize(...,
block_scale=)``). ModelOpt's Triton fake-quantization lacks the 2^-9 floor of its export: there, tiny blocks
become zero.
"""

from __future__ import annotations

from enum import StrEnum

import torch

from fourfold.nvfp4.constants import (
    E2M1_MAX,
    E4M3_MAX,
    E4M3_MIN_SUBNORMAL,
    E4M3_OVERFLOW,
    FLOAT32_MIN_NORMAL,
    GLOBAL_SCALE_DIVISOR,
)

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
_COMPRESSED_TENSORS_ZERO = 0.125
_ZERO_BLOCK = 1.0


class BlockScalePolicy(StrEnum):
    """Whose order of operations and whose zero and tiny blocks; the module's table says what each does."""

    FOURFOLD = "fourfold"
    MODELOPT = "modelopt"
    COMPRESSED_TENSORS = "compressed-tensors"


def global_scale_from_amax(amax: torch.Tensor, policy: BlockScalePolicy = BlockScalePolicy.FOURFOLD) -> torch.Tensor:
    """Global scale, float32, decode direction, in ``amax``'s shape.

    ``amax`` is float32, bfloat16 or float16; its dtype matters under ``COMPRESSED_TENSORS``: pass it in the
    weight's.

    Raises:
        TypeError: another dtype.
        ValueError: amax is negative, NaN or infinite; or it is zero, or so small that the scale would be a
            float32 subnormal, under a policy that has no answer (only ``COMPRESSED_TENSORS`` has: 1.0).
    """
    if policy is BlockScalePolicy.COMPRESSED_TENSORS:
        return encode_scale_from_amax(amax).reciprocal()
    _check_amax(amax, "amax")
    if policy is BlockScalePolicy.MODELOPT:
        scale = amax.to(torch.float32) / GLOBAL_SCALE_DIVISOR
    else:
        # A divisor on the device: CUDA multiplies by the reciprocal of a Python number.
        divisor = torch.tensor(GLOBAL_SCALE_DIVISOR, dtype=torch.float32, device=amax.device)
        scale = amax.to(torch.float32) / divisor
    if bool((scale < FLOAT32_MIN_NORMAL).any()):
        raise ValueError(
            f"amax {amax.min().item():g} gives a zero or subnormal global scale; "
            "pass a global_scale or the amax of its scale group"
        )
    return scale


def encode_scale_from_amax(amax: torch.Tensor) -> torch.Tensor:
    """compressed-tensors' ``global_scale`` (float32, it divides on decode): 2688 / amax in ``amax``'s dtype.

    Zero, and an amax whose quotient overflows that dtype, give 1.0, as there.
    """
    _check_amax(amax, "amax")
    floor = amax.clamp(min=torch.finfo(amax.dtype).tiny)
    # number / tensor is reciprocal, then product, in torch: two roundings in amax's dtype.
    encode_scale = floor.reciprocal() * GLOBAL_SCALE_DIVISOR
    return torch.where(encode_scale.isinf(), torch.ones_like(encode_scale), encode_scale).to(torch.float32)


def block_scale_from_amax(
    block_amax: torch.Tensor,
    global_scale: torch.Tensor,
    policy: BlockScalePolicy = BlockScalePolicy.FOURFOLD,
    *,
    encode_scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """Block scale, float8_e4m3fn, in ``block_amax``'s shape.

    ``block_amax`` [..., O, G] is float32, bfloat16 or float16 (its dtype matters under
    ``COMPRESSED_TENSORS``); ``global_scale`` is float32 and broadcasts against it. ``encode_scale`` is
    compressed-tensors' exact reciprocal where it is known: float32 reciprocals do not always invert (17 % of
    mantissas come back one ulp off).

    Raises:
        TypeError: another dtype.
        ValueError: an amax is negative, NaN or infinite, a global scale not positive and finite, or, under
            ``FOURFOLD``, a block would need a scale over 448.
    """
    _check_amax(block_amax, "block_amax")
    check_global_scale(global_scale)
    if policy is BlockScalePolicy.COMPRESSED_TENSORS:
        encode = global_scale.reciprocal() if encode_scale is None else encode_scale
        six = torch.tensor(E2M1_MAX, dtype=block_amax.dtype, device=block_amax.device)
        quotient = (block_amax / six).to(torch.float32)
        scale = (encode * quotient).clamp(max=E4M3_MAX).to(torch.float8_e4m3fn)
        return _replace_zeros(scale, _COMPRESSED_TENSORS_ZERO)
    ratio = block_amax.to(torch.float32) / (E2M1_MAX * global_scale)
    if policy is BlockScalePolicy.FOURFOLD and bool((ratio > E4M3_OVERFLOW).any()):
        raise ValueError(
            f"a block with amax {block_amax.max().item():g} needs block scale {ratio.max().item():g}, "
            f"over {E4M3_MAX:g}: the global scale is too small; take it from the scale group's amax"
        )
    ratio = torch.where(ratio == 0, torch.full_like(ratio, _ZERO_BLOCK), ratio)
    return ratio.clamp(min=E4M3_MIN_SUBNORMAL, max=E4M3_MAX).to(torch.float8_e4m3fn)


def check_global_scale(global_scale: torch.Tensor, name: str = "global_scale") -> None:
    """TypeError unless float32, ValueError unless every value is positive and finite."""
    if global_scale.dtype != torch.float32:
        raise TypeError(f"{name} must be float32, not {global_scale.dtype}")
    if not bool(((global_scale > 0) & global_scale.isfinite()).all()):
        raise ValueError(f"{name} must be positive and finite, found {_worst(global_scale):g}")


def _replace_zeros(scale: torch.Tensor, value: float) -> torch.Tensor:
    # float8 has no where() on every device; zero is the byte 0 here, as amax is never negative.
    replacement = torch.tensor(value).to(torch.float8_e4m3fn).view(torch.uint8).item()
    codes = scale.view(torch.uint8)
    return codes.masked_fill(codes == 0, int(replacement)).view(torch.float8_e4m3fn)


def _check_amax(amax: torch.Tensor, name: str) -> None:
    if amax.dtype not in _FLOATS:
        raise TypeError(f"{name} must be float32, bfloat16 or float16, not {amax.dtype}")
    if amax.numel() == 0:
        raise ValueError(f"{name} is empty")
    if not bool(((amax >= 0) & amax.isfinite()).all()):
        raise ValueError(f"{name} must be finite and not negative, found {_worst(amax):g}")


def _worst(tensor: torch.Tensor) -> float:
    """The first value that is not a positive finite number, else the smallest."""
    bad = tensor[~((tensor > 0) & tensor.isfinite())].flatten()
    return float(bad[0] if bad.numel() else tensor.min())
