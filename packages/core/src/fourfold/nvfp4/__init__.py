"""NVFP4 reference codec: the judge of every backend, in plain torch."""

from fourfold.nvfp4.constants import (
    BLOCK_SIZE,
    E2M1_GRID,
    E2M1_MAX,
    E4M3_MAX,
    E4M3_MIN_NORMAL,
    E4M3_MIN_SUBNORMAL,
)
from fourfold.nvfp4.e2m1 import decode_e2m1, encode_e2m1, pack_codes, round_to_e2m1, unpack_codes
from fourfold.nvfp4.reference import (
    block_amax,
    dequantize,
    fake_quantize,
    fake_quantize_activations,
    quantize,
)
from fourfold.nvfp4.scales import (
    BlockScalePolicy,
    block_scale_from_amax,
    check_global_scale,
    encode_scale_from_amax,
    global_scale_from_amax,
)
from fourfold.nvfp4.tensor import NVFP4Weight

__all__ = [
    "BLOCK_SIZE",
    "E2M1_GRID",
    "E2M1_MAX",
    "E4M3_MAX",
    "E4M3_MIN_NORMAL",
    "E4M3_MIN_SUBNORMAL",
    "BlockScalePolicy",
    "NVFP4Weight",
    "block_amax",
    "block_scale_from_amax",
    "check_global_scale",
    "decode_e2m1",
    "dequantize",
    "encode_e2m1",
    "encode_scale_from_amax",
    "fake_quantize",
    "fake_quantize_activations",
    "global_scale_from_amax",
    "pack_codes",
    "quantize",
    "round_to_e2m1",
    "unpack_codes",
]
