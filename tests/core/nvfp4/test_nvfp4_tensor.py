from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from fourfold.nvfp4 import NVFP4Weight, dequantize


def parts(*lead: int, out: int = 4, width: int = 32) -> dict[str, torch.Tensor]:
    return {
        "packed_weight": torch.zeros(*lead, out, width // 2, dtype=torch.uint8),
        "block_scale": torch.ones(*lead, out, width // 16).to(torch.float8_e4m3fn),
        "global_scale": torch.ones(()),
    }


@pytest.mark.parametrize("global_scale", [1.0, 3.2697e-05, 1.1754944e-38, 7.0])
def test_decodes_every_code_under_every_block_scale(oracle, global_scale):
    """All 256 block-scale bytes x 16 codes, each in either nibble; NaN bytes and negative ones included."""
    row = np.array([(code + 1) % 16 * 16 + code for code in range(16)], dtype=np.uint8)
    packed = np.tile(row, (256, 1))
    scale = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 2, axis=1)
    expected = oracle.decode(packed, scale, np.float32(global_scale))
    weight = NVFP4Weight(
        torch.from_numpy(packed),
        torch.from_numpy(scale).view(torch.float8_e4m3fn),
        torch.tensor(global_scale, dtype=torch.float32),
    )
    assert weight.shape == (256, 32)
    decoded = dequantize(weight).numpy()
    assert np.isnan(decoded[[0x7F, 0xFF]]).all()
    assert np.isnan(decoded).sum() == 64
    assert np.array_equal(decoded.view(np.uint32)[~np.isnan(decoded)], expected.view(np.uint32)[~np.isnan(expected)])


def test_one_global_scale_a_matrix():
    whole = parts(3)
    whole["packed_weight"] += 0x22
    whole["global_scale"] = torch.tensor([1.0, 2.0, 4.0])
    decoded = NVFP4Weight(**whole).dequantize(torch.bfloat16)
    assert decoded.dtype == torch.bfloat16
    assert decoded.amax((1, 2)).tolist() == [1, 2, 4]
    assert decoded.amin((1, 2)).tolist() == [1, 2, 4]


def test_counts_its_bytes():
    assert NVFP4Weight(**parts(out=4, width=32)).nbytes == 4 * 16 + 4 * 2 + 4


def test_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        NVFP4Weight(**parts()).global_scale = torch.ones(())


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("packed_weight", torch.int8), ("block_scale", torch.float32), ("global_scale", torch.bfloat16)],
)
def test_wrong_dtype_is_refused(name, dtype):
    wrong = parts() | {name: parts()[name].to(torch.float32).to(dtype)}
    with pytest.raises(TypeError, match=f"{name} must be torch..*, not {dtype}"):
        NVFP4Weight(**wrong)


def test_a_number_is_no_global_scale():
    with pytest.raises(TypeError, match="global_scale must be a tensor, not float"):
        NVFP4Weight(**parts() | {"global_scale": 1.0})


@pytest.mark.parametrize("shape", [(16,), (4, 0), (4, 12), (0, 16)])
def test_packed_weight_of_a_wrong_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"packed_weight has shape .* expected \[..., O, K/2\]"):
        NVFP4Weight(**parts() | {"packed_weight": torch.zeros(shape, dtype=torch.uint8)})


@pytest.mark.parametrize("shape", [(4, 1), (2, 4), (4,), (1, 4, 2)])
def test_block_scale_of_a_wrong_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"block_scale has shape .* needs \[4, 2\]"):
        NVFP4Weight(**parts() | {"block_scale": torch.ones(shape).to(torch.float8_e4m3fn)})


@pytest.mark.parametrize(("lead", "expected"), [((), r"expected \[\]"), ((3,), r"expected \[\] or \[3\]")])
def test_global_scale_of_a_wrong_shape_is_refused(lead, expected):
    with pytest.raises(ValueError, match=rf"global_scale has shape \[2\]; {expected}"):
        NVFP4Weight(**parts(*lead) | {"global_scale": torch.ones(2)})


def test_parts_on_different_devices_are_refused():
    with pytest.raises(ValueError, match=r"different devices: \['cpu', 'meta'\]"):
        NVFP4Weight(**parts() | {"global_scale": torch.ones((), device="meta")})
