"""The suite against the toolchains' own parts, each in its environment, which has no pytest: ``python -m``."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from fourfold.conformance import CHECKS
from fourfold.plugins import Role

ROOT = Path(__file__).parents[3]

RUNS = [
    ("modelopt", "fourfold_modelopt.hooks", "unfuser", "modelopt", ["--keeps-fused"]),
    ("modelopt", "fourfold_modelopt.hooks", "quantizer", "modelopt", []),
    ("llmcompressor", "fourfold_llmcompressor.hooks", "unfuser", "llmcompressor", []),
    ("llmcompressor", "fourfold_llmcompressor.hooks", "quantizer", "llmcompressor", []),
]


def run_module(python: Path | str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
    return subprocess.run(
        [str(python), "-m", "fourfold.conformance", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=environment | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )


@pytest.mark.parametrize(
    ("environment", "plugin", "role", "name", "options"), RUNS, ids=[f"{r[3]}-{r[2]}" for r in RUNS]
)
def test_a_toolchain_keeps_its_promises(environment: str, plugin: str, role: str, name: str, options: list[str]):
    python = ROOT / ".venvs" / environment / "bin" / "python"
    if not python.exists():
        pytest.fail(f"{python} is not there; set it up with: uv run fourfold setup {environment}")
    done = run_module(python, plugin, role, name, *options)
    outcomes = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"check"')]
    assert [o["check"] for o in outcomes] == [check.__name__ for check in CHECKS[Role(role)]], done.stderr[-3000:]
    assert {o["check"]: o["message"] for o in outcomes if o["verdict"] == "broken"} == {}
    assert done.returncode == 0
