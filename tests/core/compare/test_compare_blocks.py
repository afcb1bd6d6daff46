"""The claim behind every cause: what two roundings of one weight show follows from their scales, nothing else does."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fourfold.compare.blocks import compare_rows
from fourfold.compare.report import Cause
from fourfold.nvfp4 import NVFP4Weight, pack_codes, quantize, unpack_codes


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), factor=st.floats(1.0, 30.0), spread=st.sampled_from([0.1, 1.0, 4.0]))
def test_two_roundings_of_one_weight_have_no_cause_of_their_own(seed: int, factor: float, spread: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(24, 64, generator=generator) * torch.exp(spread * torch.randn(24, 64, generator=generator))
    amax = weight.abs().amax()
    a, b = quantize(weight, global_amax=amax), quantize(weight, global_amax=amax * factor)
    found = compare_rows(a, b)
    # A block so small that one side stores it as zero has a cause: the policy for such blocks.
    assert set(found.causes) <= {Cause.ZERO_BLOCK}
    assert found.codes_differing == int((unpack_codes(a.packed_weight) != unpack_codes(b.packed_weight)).sum())


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), code=st.integers(0, 15), row=st.integers(0, 7), column=st.integers(0, 63))
def test_a_code_no_weight_explains_is_always_found(seed: int, code: int, row: int, column: int) -> None:
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(seed))
    a = quantize(weight, global_amax=weight.abs().amax())
    b = quantize(weight, global_amax=weight.abs().amax() * 1.37)
    clean = compare_rows(a, b)
    codes = unpack_codes(b.packed_weight)
    before = int(codes[row, column])
    codes[row, column] = code
    planted = compare_rows(a, NVFP4Weight(pack_codes(codes), b.block_scale, b.global_scale))
    distance = abs(_grid(code) - _grid(before))
    if distance > 2:
        assert planted.causes.get(Cause.CODE, 0) + planted.causes.get(Cause.CODE_ROUNDING, 0) == 1
    elif distance == 0:
        assert planted.causes == clean.causes


def _grid(code: int) -> int:
    return -(code - 8) if code >= 8 else code


def test_bad_block_scales_are_a_cause_and_no_crash() -> None:
    weight = quantize(torch.randn(4, 32, generator=torch.Generator().manual_seed(0)))
    for byte in (0x7F, 0xFF, 0xB0):
        scale = weight.block_scale.view(torch.uint8).clone()
        scale[2, 1] = byte
        bad = NVFP4Weight(weight.packed_weight, scale.view(torch.float8_e4m3fn), weight.global_scale)
        found = compare_rows(weight, bad)
        assert found.causes == {Cause.BLOCK_SCALE: 1}
        assert found.block_scales_differing == 1
