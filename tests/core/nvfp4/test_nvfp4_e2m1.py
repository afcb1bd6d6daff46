from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fourfold.nvfp4 import E2M1_GRID, decode_e2m1, encode_e2m1, pack_codes, round_to_e2m1, unpack_codes

MIDPOINTS = [(low + high) / 2 for low, high in pairwise(E2M1_GRID)]


def around(value: float) -> list[float]:
    here = torch.tensor(value)
    return [torch.nextafter(here, torch.tensor(to)).item() for to in (-math.inf, math.inf)] + [value]


def test_every_code_decodes_to_its_bit_fields(oracle):
    expected = np.concatenate((oracle.e2m1, -oracle.e2m1))
    decoded = decode_e2m1(torch.arange(16, dtype=torch.uint8))
    assert decoded.dtype == torch.float32
    assert decoded.tolist() == expected.tolist()
    assert decoded[8].signbit()


def test_encodes_every_bfloat16_to_the_nearest_code(oracle):
    bits = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16)
    values = bits.view(torch.bfloat16).to(torch.float32)
    values = values[values.isfinite()]
    assert len(values) == 2 * 255 * 128
    assert np.array_equal(encode_e2m1(values).numpy(), oracle.encode(values.numpy()))


def test_encodes_random_float32_to_the_nearest_code(oracle):
    values = torch.randn(200_000, generator=torch.Generator().manual_seed(1)) * 3
    assert np.array_equal(encode_e2m1(values).numpy(), oracle.encode(values.numpy()))


@pytest.mark.parametrize("midpoint", MIDPOINTS)
def test_ties_and_their_float32_neighbours(oracle, midpoint):
    values = np.array([sign * value for value in around(midpoint) for sign in (1, -1)], dtype=np.float32)
    assert np.array_equal(encode_e2m1(torch.from_numpy(values)).numpy(), oracle.encode(values))


def test_ties_go_to_the_even_code():
    assert encode_e2m1(torch.tensor(MIDPOINTS)).tolist() == [0, 2, 2, 4, 4, 6, 6]
    assert round_to_e2m1(torch.tensor(MIDPOINTS)).tolist() == [0, 1, 1, 2, 2, 4, 4]


def test_saturates_at_six():
    assert round_to_e2m1(torch.tensor([6.0, 7.0, 1e30, math.inf, -7.0, -math.inf])).tolist() == [
        6,
        6,
        6,
        6,
        -6,
        -6,
    ]


def test_sign_of_zero():
    codes = encode_e2m1(torch.tensor([0.0, -0.0, 0.1, -0.1, -1e-45]))
    assert codes.tolist() == [0, 0, 0, 8, 8]


def test_even_column_is_the_low_nibble():
    packed = pack_codes(torch.tensor([[1, 2, 15, 8]], dtype=torch.uint8))
    assert packed.tolist() == [[0x21, 0x8F]]


@given(st.lists(st.tuples(st.integers(0, 15), st.integers(0, 15)), min_size=1, max_size=40))
def test_unpack_inverts_pack(pairs):
    codes = torch.tensor([code for pair in pairs for code in pair], dtype=torch.uint8)
    assert torch.equal(unpack_codes(pack_codes(codes)), codes)


@given(st.lists(st.integers(0, 255), min_size=1, max_size=40))
def test_pack_inverts_unpack(data):
    packed = torch.tensor([data], dtype=torch.uint8)
    assert torch.equal(pack_codes(unpack_codes(packed)), packed)


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=40))
def test_rounding_is_idempotent(values):
    once = round_to_e2m1(torch.tensor(values))
    assert torch.equal(round_to_e2m1(once), once)


def test_packs_and_encodes_any_memory_layout():
    values = (torch.randn(32, 64, generator=torch.Generator().manual_seed(2)) * 3).t()
    assert torch.equal(encode_e2m1(values), encode_e2m1(values.contiguous()))
    codes = encode_e2m1(values)
    assert torch.equal(pack_codes(codes), pack_codes(codes.contiguous()))


@pytest.mark.parametrize("width", [0, 1, 17])
def test_odd_or_empty_width_is_refused(width):
    with pytest.raises(
        ValueError, match=rf"codes of shape \[2, {width}\] cannot be packed: the last axis must be even"
    ):
        pack_codes(torch.zeros(2, width, dtype=torch.uint8))


@pytest.mark.parametrize("function", [pack_codes, unpack_codes, decode_e2m1])
def test_other_dtypes_are_refused(function):
    with pytest.raises(TypeError, match=r"must be uint8, not torch.int64"):
        function(torch.zeros(2, 4, dtype=torch.int64))
