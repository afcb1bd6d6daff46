"""E2M1 codes: rounding, encoding, packing, and back.

Rounding is to the nearest grid value, ties to the even code (0.25 -> 0, 0.75 -> 1, 1.25 -> 1, 1.75 -> 2,
2.5 -> 2, 3.5 -> 4, 5 -> 4), saturating at 6. ModelOpt, compressed-tensors and vLLM all break ties this way,
so codes never differ between them because of a tie; they differ because the scaled value does.

Sign: a code is negative when the value is below zero. A negative value that rounds to zero keeps its sign
(code 8, which decodes to -0.0); an input of -0.0 is not below zero and becomes code 0. Both toolchains agree.

Packing: two codes a byte along the last axis, the even column in the low nibble.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch

from fourfold.nvfp4.constants import CODES_PER_BYTE, E2M1_GRID

_SIGN_BIT = 8


def _below(value: float) -> float:
    """The largest float32 under ``value``, so that a strict comparison with it includes ``value``."""
    return torch.nextafter(torch.tensor(value), torch.tensor(-math.inf)).item()


# Seven thresholds between the eight magnitudes; a value takes the next code when it is greater. Where the
# next code is the even one, the tie belongs to it, and the threshold moves one float32 down.
_THRESHOLDS = tuple(
    _below((low + high) / 2) if code % 2 == 0 else (low + high) / 2
    for code, (low, high) in enumerate(pairwise(E2M1_GRID), start=1)
)
_DECODE = E2M1_GRID + tuple(-value for value in E2M1_GRID)


def encode_e2m1(values: torch.Tensor) -> torch.Tensor:
    """Codes (uint8, 0-15) of ``values``, any shape; computed in float32. NaN is the caller's to refuse."""
    values = values.to(torch.float32)
    thresholds = torch.tensor(_THRESHOLDS, dtype=torch.float32, device=values.device)
    codes = torch.bucketize(values.abs().contiguous(), thresholds, out_int32=True).to(torch.uint8)
    return codes.add_((values < 0).to(torch.uint8), alpha=_SIGN_BIT)


def decode_e2m1(codes: torch.Tensor) -> torch.Tensor:
    """Values (float32) of ``codes`` (uint8, 0-15), any shape."""
    _require_uint8(codes, "codes")
    table = torch.tensor(_DECODE, dtype=torch.float32, device=codes.device)
    return table[codes.to(torch.int32)]


def round_to_e2m1(values: torch.Tensor) -> torch.Tensor:
    """``values`` rounded to the E2M1 grid, float32, saturating at 6."""
    return decode_e2m1(encode_e2m1(values))


def pack_codes(codes: torch.Tensor) -> torch.Tensor:
    """Bytes uint8 [..., K/2] of ``codes`` uint8 [..., K]; the even column is the low nibble."""
    _require_uint8(codes, "codes")
    if codes.ndim == 0 or codes.shape[-1] == 0 or codes.shape[-1] % CODES_PER_BYTE:
        raise ValueError(
            f"codes of shape {list(codes.shape)} cannot be packed: the last axis must be even and not empty"
        )
    return codes[..., 0::2] | (codes[..., 1::2] << 4)


def unpack_codes(packed: torch.Tensor) -> torch.Tensor:
    """Codes uint8 [..., K] of ``packed`` uint8 [..., K/2]."""
    _require_uint8(packed, "packed")
    return torch.stack((packed & 0x0F, packed >> 4), dim=-1).flatten(-2)


def _require_uint8(tensor: torch.Tensor, name: str) -> None:
    if tensor.dtype != torch.uint8:
        raise TypeError(f"{name} must be uint8, not {tensor.dtype}")
