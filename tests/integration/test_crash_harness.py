"""The crash harness itself, at few points: it kills, and what it counts as resumed was."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "crashes.py"


def test_kills_around_the_final_rename_lose_nothing(tmp_path):
    if shutil.which("strace") is None:
        pytest.skip("the harness counts system calls with strace, which is not installed")
    probe = subprocess.run(["strace", "-qq", "-o", tmp_path / "trace", "true"], capture_output=True, check=False)
    if probe.returncode:
        pytest.skip("tracing a process is not allowed here")
    result = subprocess.run(
        [sys.executable, SCRIPT, "--points", "3", "--stages", "export"], capture_output=True, text=True, check=False
    )
    assert result.stdout, result.stderr[-2000:]
    report = json.loads(result.stdout)
    assert report["failures"] == []
    assert report["totals"]["kills"] == 3
    assert report["totals"]["lost"] == 0
    assert report["totals"]["resumed"] == sum(
        report["totals"].get(kind, 0) for kind in ("kills", "disk full", "no rights")
    )
    assert result.returncode == 0
