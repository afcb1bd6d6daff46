"""Decoding a checkpoint equals ModelOpt's fake-quantized weights to the bit: its own kernels say so.

Without a GPU, Triton's interpreter runs two of the three kernels; FOURFOLD_FAKE_QUANT_STRIDE=1 takes every matrix (some
two minutes), the default every eighth expert and all others.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from core.nvfp4.conftest import corner_weights
from fourfold.checkpoint.index import TensorFolder
from fourfold.convert.view import CheckpointView
from fourfold.demo import model_path
from fourfold.models.gemma4 import read_gemma4
from fourfold.nvfp4 import BlockScalePolicy, NVFP4Weight, quantize

from .judge import Verdict, judge

STRIDE = int(os.environ.get("FOURFOLD_FAKE_QUANT_STRIDE", "8"))
RunKernels = Callable[[str, dict[str, torch.Tensor]], dict[str, torch.Tensor]]


@pytest.fixture
def kernels(environments, tmp_path) -> RunKernels:
    def run(mode: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        save_file({name: value.contiguous() for name, value in tensors.items()}, tmp_path / "in.safetensors")
        script = Path(__file__).with_name("kernels.py")
        command = [environments["modelopt"], script, mode, tmp_path / "in.safetensors", tmp_path / "out.safetensors"]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr[-2000:]
        return load_file(tmp_path / "out.safetensors")

    return run


def demo_matrices(stride: int) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """Name, weight [O, K] and the amax of its scale group, of every quantizable matrix but most experts."""
    source = TensorFolder(model_path())
    linears = read_gemma4(source).linears.values()
    amax: dict[str, torch.Tensor] = {}
    for module in linears:
        own = module.read(source).abs().max()
        amax[module.scale_group] = torch.maximum(amax.get(module.scale_group, own), own)
    for module in linears:
        if module.expert is None or module.expert % stride == 0:
            yield module.name, module.read(source), amax[module.scale_group].float()


def inputs(matrices: list[tuple[str, torch.Tensor, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {n: w for n, w, _ in matrices} | {f"{n}/global_amax": amax for n, _, amax in matrices}


def corners() -> list[tuple[str, torch.Tensor, torch.Tensor]]:
    return [(name, weight, weight.abs().max().float()) for name, weight in corner_weights().items()]


def test_every_checkpointed_matrix_is_the_kernels(kernels, modelopt_run):
    checkpoint = CheckpointView(modelopt_run.output)
    matrices = [(name, weight.float(), amax) for name, weight, amax in demo_matrices(STRIDE)]
    found = kernels("interpret", inputs(matrices))
    dynamic, cast = Verdict(), Verdict()
    for name, weight, _ in matrices:
        stored = checkpoint.weight(name)
        judge(dynamic, name, weight, stored, found[f"{name}/dynamic"], cast_scale=found[f"{name}/e4m3"])
        judge(cast, name, weight, stored, found[f"{name}/cast"])
    assert dynamic.unexplained == []
    assert dynamic.blocks > 80_000
    # The interpreter's cast is wrong for under 1 % of scales; its kernel that needs none agrees everywhere.
    assert dynamic.reasons == {
        "tiny": 0, "interpreter": pytest.approx(0.007 * dynamic.blocks, rel=0.3), "division": 0, "order": 0,
    }  # fmt: skip
    assert cast.unexplained == []
    assert set(cast.reasons.values()) == {0}


def test_tiny_blocks_are_the_one_difference_on_corner_tensors(kernels):
    """The kernel lacks the export's floor of 2^-9: 49 of 1,536 blocks of each tensor made for it, and bounded."""
    matrices = corners()
    found = kernels("interpret", inputs(matrices))
    for name, weight, _ in matrices:
        verdict, cast = Verdict(), Verdict()
        stored = quantize(weight, policy=BlockScalePolicy.MODELOPT)
        judge(verdict, name, weight, stored, found[f"{name}/dynamic"], cast_scale=found[f"{name}/e4m3"])
        assert verdict.unexplained == [], name
        assert verdict.reasons["tiny"] == (49 if name.endswith(".corners") else 0), name
        assert verdict.largest_tiny < 6e-5
        if weight.dtype is torch.float32:
            judge(cast, name, weight, stored, found[f"{name}/cast"])
            assert cast.unexplained == []
            assert set(cast.reasons.values()) == {0}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_changed_code_and_a_changed_scale_are_not_explained(dtype: torch.dtype):
    """The judge can say no: with either damage, every excuse is refused."""
    name, weight, _ = next(demo_matrices(8))
    weight = weight.to(dtype)
    stored = quantize(weight, policy=BlockScalePolicy.MODELOPT)
    kernel = stored.dequantize(dtype)
    packed = stored.packed_weight.clone()
    packed[2, 3] ^= 0x01
    scale = stored.block_scale.view(torch.uint8).clone()
    scale[4, 1] += 1
    changed = NVFP4Weight(packed, scale.view(torch.float8_e4m3fn), stored.global_scale)
    cast_scale = (weight.float().reshape(weight.shape[0], -1, 16).abs().amax(-1) / (6 * stored.global_scale)).to(
        torch.float8_e4m3fn
    )
    for options in ({}, {"on_gpu": True}, {"cast_scale": cast_scale.float()}):
        verdict = Verdict()
        judge(verdict, name, weight, stored, changed.dequantize(dtype), **options)
        assert verdict.unexplained == [(name, 2, 0), (name, 4, 1)]
        untouched = Verdict()
        judge(untouched, name, weight, stored, kernel, **options)
        assert untouched.unexplained == []
        assert set(untouched.reasons.values()) == {0}


@pytest.mark.gpu
def test_the_real_kernels_on_a_gpu(kernels, environments):
    """Every matrix and all corners: what ModelOpt's export stores on that GPU, against all three kernels there."""
    probe = "import torch; print(torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 9))"
    answer = subprocess.run([environments["modelopt"], "-c", probe], capture_output=True, text=True, check=True)
    if answer.stdout.split()[-1:] != ["True"]:
        pytest.skip("ModelOpt's kernel needs a CUDA GPU of compute capability 8.9 or more")
    matrices = [*demo_matrices(1), *corners()]
    matrices += [(f"{name}.float32", weight.float(), amax) for name, weight, amax in demo_matrices(1)]
    found = kernels("cuda", inputs(matrices))
    verdicts = {kernel: Verdict() for kernel in ("dynamic", "static", "cast")}
    for name, weight, _ in matrices:
        part = {key: found[f"{name}/{key}"] for key in ("packed_weight", "block_scale", "global_scale")}
        stored = NVFP4Weight(part["packed_weight"], part["block_scale"], part["global_scale"].reshape(()))
        judge(verdicts["dynamic"], name, weight, stored, found[f"{name}/dynamic"], on_gpu=True)
        step = found[f"{name}/step"].reshape(weight.shape[0], -1)
        judge(verdicts["static"], name, weight, stored, found[f"{name}/static"], step=step, on_gpu=True)
        if weight.dtype is torch.float32:
            judge(verdicts["cast"], name, weight, stored, found[f"{name}/cast"], on_gpu=True)
    for verdict in verdicts.values():
        assert verdict.unexplained == []
    dynamic = verdicts["dynamic"]
    assert dynamic.reasons["tiny"] == 3 * 49
    assert dynamic.reasons["division"] < 0.01 * dynamic.blocks
    assert set(verdicts["cast"].reasons.values()) == {0}
