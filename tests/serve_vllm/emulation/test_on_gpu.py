"""On a CUDA machine: the demo by Marlin, and by the emulation as W4A16 and W4A4, in BF16."""

from __future__ import annotations

import json
import subprocess

import numpy as np
import pytest
import torch

from fourfold.environments import ensure_environment
from fourfold.progress import NoProgress
from fourfold_vllm.hooks import VLLM_CUDA
from serve_vllm.emulation.conftest import HERE


@pytest.mark.gpu
def test_marlin_is_w4a16_and_not_w4a4(modelopt_layout, texts, tmp_path, record_property):
    """Marlin and the emulated W4A16 agree as two BF16 servers do; W4A4 is further away, and by how much is reported."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device: Marlin and emulation were not compared")
    python = ensure_environment(VLLM_CUDA, NoProgress())
    base = {"model": str(modelopt_layout), "prompts": texts, "dtype": "bfloat16"}
    # In one process, a config that the plugin replaced stays replaced: vLLM's own kernels come first.
    cases = [
        base | {"name": "marlin", "environment": {"FOURFOLD_EMULATION": "off"}, "moe_backend": "marlin"},
        base | {"name": "W4A16", "environment": {"FOURFOLD_EMULATION": "on", "FOURFOLD_ACTIVATIONS": "none"}},
        base | {"name": "W4A4", "environment": {"FOURFOLD_EMULATION": "on"}},
    ]
    request, answer = tmp_path / "cases.json", tmp_path / "out.npz"
    request.write_text(json.dumps(cases))
    command = [str(python), str(HERE / "engines.py"), str(request), str(answer)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-4000:]
    arrays = np.load(answer)
    best = {case["name"]: arrays[f"{case['name']}/ids"][:, 0] for case in cases}
    agreement = {name: float((best[name] == best["marlin"]).mean()) for name in ("W4A16", "W4A4")}
    record_property("top-1 agreement with Marlin", str(agreement))
    assert agreement["W4A16"] > 0.95
    assert agreement["W4A4"] < agreement["W4A16"]
