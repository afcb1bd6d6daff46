"""Oracles and inputs for the codec's tests: numpy by table lookup, and other environments' pythons."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

FLOATS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class NumpyOracle:
    """NVFP4 from the format's definition: bit fields to tables, nearest entry, ties to the even code."""

    def __init__(self) -> None:
        self.e2m1 = np.array([self._minifloat(code, exponent_bits=2, mantissa_bits=1, bias=1) for code in range(8)])
        self.e4m3 = np.array([self._minifloat(code, exponent_bits=4, mantissa_bits=3, bias=7) for code in range(127)])

    @staticmethod
    def _minifloat(code: int, exponent_bits: int, mantissa_bits: int, bias: int) -> float:
        exponent, mantissa = code >> mantissa_bits, code & (2**mantissa_bits - 1)
        assert exponent < 2**exponent_bits
        fraction = mantissa / 2**mantissa_bits
        return 2.0 ** (1 - bias) * fraction if exponent == 0 else 2.0 ** (exponent - bias) * (1 + fraction)

    @staticmethod
    def _nearest(values: np.ndarray, table: np.ndarray) -> np.ndarray:
        """Code of the nearest entry by distance, in float64; of two equally near ones the even code."""
        values = np.minimum(values.astype(np.float64), table[-1])
        distance = np.abs(values[..., None] - table)
        nearest = distance == distance.min(-1, keepdims=True)
        preference = np.where(np.arange(len(table)) % 2 == 0, 2, 1)
        return (nearest * preference).argmax(-1)

    def encode(self, values: np.ndarray) -> np.ndarray:
        return self._nearest(np.abs(values), self.e2m1) + 8 * (values < 0)

    def decode(self, packed: np.ndarray, block_scale: np.ndarray, global_scale: np.float32) -> np.ndarray:
        """``block_scale`` as bytes; each product in float64, rounded once to float32."""
        codes = np.stack((packed % 16, packed // 16), -1).reshape(*packed.shape[:-1], -1)
        values = self.e2m1[codes % 8] * np.where(codes >= 8, -1.0, 1.0)
        magnitude = np.append(self.e4m3, np.nan)[block_scale % 128]
        signed = magnitude * np.where(block_scale >= 128, -1.0, 1.0)
        step = (signed * np.float64(global_scale)).astype(np.float32).astype(np.float64)
        return (values * np.repeat(step, 16, -1)).astype(np.float32)

    def quantize(self, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.float32]:
        """float32 [O, K] to packed bytes, block-scale bytes and global scale, by the ``fourfold`` policy."""
        blocks = weight.astype(np.float32).reshape(weight.shape[0], -1, 16)
        amax = np.abs(blocks).max(-1)
        global_scale = np.float32(amax.max() / np.float32(2688))
        ratio = amax / (np.float32(6) * global_scale)
        scale = self._nearest(np.clip(np.where(ratio == 0, 1, ratio), 2.0**-9, 448), self.e4m3)
        step = self.e4m3[scale].astype(np.float32) * global_scale
        codes = self.encode(blocks / step[..., None]).reshape(weight.shape)
        return codes[:, 0::2] + 16 * codes[:, 1::2], scale, global_scale


@pytest.fixture(scope="session")
def oracle() -> NumpyOracle:
    return NumpyOracle()


def corner_weights() -> dict[str, torch.Tensor]:
    """[96, 256] weights that hit what producers treat differently, in the three float dtypes, by name."""
    generator = torch.Generator().manual_seed(5)
    normal = torch.randn(96, 256, generator=generator)
    heavy = normal * torch.randn(96, 256, generator=generator).abs() ** 3
    weights: dict[str, torch.Tensor] = {}
    for name, dtype in FLOATS.items():
        corners = (normal * 0.1).to(dtype)
        corners[3] = 0  # zero blocks
        corners[5, :16] = -0.0
        corners[7, 16:48] = torch.finfo(dtype).tiny
        corners[8, :16] *= 1e-5
        for row, factor in zip((9, 10, 11, 12, 13), (1e-4, 1e-3, 3e-5, 1e-6, 1e-2), strict=True):
            corners[row] *= factor  # block scales around 2^-9 and below it
        outlier = (normal * 0.02).to(dtype)
        outlier[0, 0] = 1000
        ties = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0])
        ties = torch.cat((ties, -ties[:7], torch.tensor([-0.0]))).repeat(96, 16)
        ties[0, :16] *= 448  # amax 2688: global scale 1, and block scale 1 in every other block
        weights |= {
            f"{name}.normal": (normal * 0.02).to(dtype),
            f"{name}.small": (normal * 0.002).to(dtype),  # amax under 0.041: float16 overflows in compressed-tensors
            f"{name}.large": (normal * 300).to(dtype),
            f"{name}.heavy-tailed": (heavy * 0.05).to(dtype),
            f"{name}.corners": corners,
            f"{name}.outlier": outlier,
            f"{name}.ties": ties.to(dtype),
        }
    return weights


@pytest.fixture(scope="session")
def weights() -> dict[str, torch.Tensor]:
    return corner_weights()


RunOracle = Callable[[str, str, dict[str, torch.Tensor]], dict[str, torch.Tensor]]


@pytest.fixture(scope="session")
def run_in_environment(environments: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> RunOracle:
    """Run a script of this folder on tensors in another backend's environment."""

    def run(environment: str, script: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        folder = tmp_path_factory.mktemp(environment)
        save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "in.safetensors")
        python = environments[environment]
        command = [str(python), str(Path(__file__).parent / script), "in.safetensors", "out.safetensors"]
        dropped = ("VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE")
        child = {key: value for key, value in os.environ.items() if key not in dropped}
        result = subprocess.run(
            command, cwd=folder, env=child, capture_output=True, text=True, timeout=300, check=False
        )
        assert result.returncode == 0, result.stderr[-2000:]
        return load_file(folder / "out.safetensors")

    return run
