"""How much memory a server's processes take, as the kernel or the driver counts it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from fourfold.config import Config

_PEAK = re.compile(r"^VmHWM:\s+(\d+) kB", re.MULTILINE)
_TIMEOUT_S = 20.0


class MemoryUse(Config):
    """``num_bytes`` by ``measure``: ``gpu`` is what the driver says is held now; ``resident-peak`` is the sum of each
    process's own peak, which the whole may never have reached at once.
    """

    num_bytes: int
    measure: str


def group_memory(pid: int) -> MemoryUse | None:
    """Memory of the process group that ``pid`` heads, on GPUs where it holds any.

    None where nothing can be read, and where the driver does not answer: host memory would pass for all there is.
    """
    members = _group(pid)
    on_gpus = _gpu_bytes(members)
    if on_gpus is None:
        return None
    if on_gpus:
        return MemoryUse(num_bytes=on_gpus, measure="gpu")
    peaks = [_peak_bytes(member) for member in members]
    return MemoryUse(num_bytes=sum(peaks), measure="resident-peak") if any(peaks) else None


def _group(pid: int) -> set[int]:
    found = set()
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if os.getpgid(int(folder.name)) == pid:
                    found.add(int(folder.name))
            except ProcessLookupError:
                continue
    return found


def _peak_bytes(pid: int) -> int:
    try:
        match = _PEAK.search(Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace"))
    except OSError:
        return 0
    return int(match[1]) * 1024 if match else 0


def _gpu_bytes(pids: set[int]) -> int | None:
    """0 without a driver, None where it is asked in vain."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return 0
    command = [program, "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if result.returncode != 0 and "No devices were found" not in result.stdout:
        return None
    total = 0
    for line in result.stdout.splitlines():
        pid, _, used = (field.strip() for field in line.partition(","))
        if pid.isdigit() and used.isdigit() and int(pid) in pids:
            total += int(used) * 2**20
    return total
