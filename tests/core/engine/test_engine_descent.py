"""Sweeps after GPTQ: against plain loops in float64, and by the error of outputs on tokens not calibrated on."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from fourfold.engine.descent import descend
from fourfold.engine.encode import encode
from fourfold.engine.gptq import gptq
from fourfold.nvfp4 import BlockScalePolicy, global_scale_from_amax, round_to_e2m1

from .test_engine_rounding import findings_of, held_out, output_error, source

__all__ = ["held_out", "source"]
DAMPING = 0.01


@pytest.fixture(scope="module")
def case():
    """Weights [2, 5, 48], correlated inputs' X^T X, and what GPTQ makes of them; the second matrix saw no input."""
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(2, 5, 48, generator=generator)
    inputs = torch.randn(64, 12, generator=generator) @ torch.randn(12, 48, generator=generator)
    inputs += 0.3 * torch.randn(64, 48, generator=generator)
    hessian = torch.stack([inputs.T @ inputs, torch.zeros(48, 48)])
    scale = global_scale_from_amax(weight.abs().amax((-2, -1)), BlockScalePolicy.MODELOPT)
    damping = torch.full((2,), DAMPING)
    return weight, hessian, scale, damping, gptq(weight, hessian, scale, damping)


def swept(case, sweeps):
    weight, hessian, scale, damping, (decoded, block_scale) = case
    return descend(
        weight, decoded, block_scale, hessian=hessian, global_scale=scale, damping=damping, sweeps=sweeps
    )  # fmt: skip


def damped(hessian):
    mean = hessian.double().diagonal(dim1=-2, dim2=-1).mean(-1)
    added = torch.where(mean > 0, DAMPING * mean, torch.ones_like(mean))
    return hessian.double() + added[:, None, None] * torch.eye(hessian.shape[-1], dtype=torch.float64)


def error(decoded, weight, hessian):
    """float64 [N, O]."""
    difference = (decoded - weight).double()
    return ((difference @ damped(hessian)) * difference).sum(-1)


def one_sweep(row, decoded, codes, hessian, global_scale):
    """The same for one row, one number at a time; errors are computed anew from all weights each time."""
    for block in range(len(codes)):
        found = []
        for offset in (0, -1, 1, -2, 2, -3, 3):
            code = min(max(int(codes[block]) + offset, 1), 126)
            step = float(torch.tensor(code, dtype=torch.uint8).view(torch.float8_e4m3fn).float()) * global_scale
            trial = decoded.clone()
            columns = slice(16 * block, 16 * block + 16)
            trial[columns] = round_to_e2m1((trial[columns] / step).float()).double() * step
            for column in range(16 * block, 16 * block + 16):
                slope = float(((trial - row) * hessian[column]).sum())
                wanted = float(trial[column]) - slope / float(hessian[column, column])
                trial[column] = float(round_to_e2m1(torch.tensor(wanted / step).float())) * step
            found.append((float((trial - row) @ hessian @ (trial - row)), trial, code))
        before = float((decoded - row) @ hessian @ (decoded - row))
        least = min(found, key=lambda each: each[0])
        if least[0] < before:
            decoded, codes[block] = least[1], least[2]
    return decoded, codes


def test_a_sweep_is_that_of_plain_loops(case):
    weight, hessian, scale, _, (decoded, block_scale) = case
    ours, scales = swept(case, 1)
    moments = damped(hessian)
    for matrix in range(2):
        for row in range(5):
            wanted, codes = one_sweep(
                weight[matrix, row].double(),
                decoded[matrix, row].double(),
                block_scale[matrix, row].view(torch.uint8).clone(),
                moments[matrix],
                float(scale[matrix]),
            )
            assert torch.equal(scales[matrix, row].view(torch.uint8), codes)
            torch.testing.assert_close(ours[matrix, row].double(), wanted, rtol=1e-6, atol=1e-7)


def test_no_row_gets_worse_and_most_get_better(case):
    weight, hessian, *_, (decoded, _) = case
    errors = [error(decoded, weight, hessian)]
    errors += [error(swept(case, sweeps)[0], weight, hessian) for sweeps in (1, 2, 4)]
    for before, after in pairwise(errors):
        assert bool((after <= before * (1 + 1e-5)).all())
    assert float(errors[-1][0].sum()) < 0.9 * float(errors[0][0].sum())


def test_what_is_given_stays(case):
    weight, hessian, scale, damping, (decoded, block_scale) = case
    tensors = (weight, hessian, scale, decoded, block_scale.view(torch.uint8))
    before = [tensor.clone() for tensor in tensors]
    result, scales = swept(case, 1)
    gptq(weight, hessian, scale, damping)
    encode(weight, scale)
    assert all(torch.equal(tensor, old) for tensor, old in zip(tensors, before, strict=True))
    # Decoded weights are on the grid of their scales: encoding them loses nothing.
    assert torch.equal(encode(result, scale, scales).dequantize(), result)


def test_less_output_error_than_gptq_alone_and_clean(demo, held_out, source, tmp_path):
    alone, swept_often = (demo.quantize(algorithm="gptq", stream=True, gptq_sweeps=sweeps) for sweeps in (0, 4))
    errors = output_error(alone, held_out, source), output_error(swept_often, held_out, source)
    print(f"gptq: {errors[0]:.4f}, with four sweeps: {errors[1]:.4f}")
    assert errors[1] < 0.9 * errors[0]
    assert findings_of(swept_often, demo, tmp_path) == ()
