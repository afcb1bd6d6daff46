"""The crash harness itself, at few points: every fault happens, and what it counts as resumed was."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "crashes.py"


@pytest.mark.parametrize(
    ("stage", "points", "exercised"),
    [
        ("export", 3, {"kills": 3, "disk full": 1, "no rights": 1}),
        ("quantize", 1, {"kills": 1, "disk full": 1, "no rights": 1, "broken pipe": 1}),
    ],
)
def test_every_fault_is_exercised_and_nothing_is_lost(stage, points, exercised, tmp_path):
    """The kills of few points are those around the final rename."""
    if shutil.which("strace") is None:
        pytest.skip("the harness counts system calls with strace, which is not installed")
    probe = subprocess.run(["strace", "-qq", "-o", tmp_path / "trace", "true"], capture_output=True, check=False)
    if probe.returncode:
        pytest.skip("tracing a process is not allowed here")
    result = subprocess.run(
        [sys.executable, SCRIPT, "--points", str(points), "--stages", stage],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.stdout, result.stderr[-2000:]
    report = json.loads(result.stdout)
    assert report["failures"] == []
    if os.geteuid() != 0:  # only root can mount a file system, or has a right to lose
        exercised = {kind: number for kind, number in exercised.items() if kind in ("kills", "broken pipe")}
    assert report["totals"] == exercised | {"resumed": sum(exercised.values()), "lost": 0}
    assert result.returncode == 0
