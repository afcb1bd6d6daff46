"""What this machine has: interpreter, uv, environments, GPUs, memory, disk."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from fourfold.config import Config
from fourfold.environments import python_of, suited_environments
from fourfold.plugins import Registry

_SUPPORTED = ((3, 11), (3, 13))


class Check(Config):
    """One thing looked at; ``mend`` says what to do about it, and is empty when nothing is to be done."""

    subject: str
    ok: bool
    found: str
    mend: str = ""


class Diagnosis(Config):
    """What ``fourfold doctor --json`` prints. A missing GPU is no fault."""

    ok: bool
    checks: tuple[Check, ...]


def diagnose(registry: Registry) -> Diagnosis:
    """Look, change nothing."""
    checks = (_python(), _machine(), _uv(), *_environments(registry), _gpus(), _memory(), _disk())
    return Diagnosis(ok=all(check.ok for check in checks), checks=checks)


def _python() -> Check:
    version = sys.version_info[:2]
    ok = _SUPPORTED[0] <= version <= _SUPPORTED[1]
    return Check(subject="Python", ok=ok, found=platform.python_version(), mend="" if ok else "use Python 3.11 to 3.13")


def _machine() -> Check:
    found = f"{platform.system()} {platform.machine()}"
    ok = platform.system() == "Linux" and platform.machine() in ("x86_64", "aarch64")
    return Check(
        subject="system", ok=ok, found=found, mend="" if ok else "the locks are for Linux on x86_64 and aarch64"
    )


def _uv() -> Check:
    uv = shutil.which("uv")
    if uv is None:
        return Check(subject="uv", ok=False, found="not on the PATH", mend="pip install 'uv>=0.13.9,<0.14'")
    version = subprocess.run([uv, "--version"], capture_output=True, text=True, check=False).stdout.strip()
    return Check(subject="uv", ok=True, found=version)


def _environments(registry: Registry) -> tuple[Check, ...]:
    checks = []
    suited, skipped = suited_environments(registry.environments())
    for name, reason in skipped.items():
        checks.append(Check(subject=f"environment {name}", ok=True, found=f"not needed: {reason}"))
    for environment in suited:
        python = python_of(environment)
        checks.append(
            Check(
                subject=f"environment {environment.name}",
                ok=python is not None,
                found="ready" if python else "not set up",
                mend="" if python else f"uv run fourfold setup {environment.name}",
            )
        )
    return tuple(checks)


def _gpus() -> Check:
    import torch

    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return Check(subject="GPUs", ok=True, found=", ".join(names) or "none; everything runs on the CPU")


def _memory() -> Check:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Check(subject="memory", ok=True, found=f"{total / 2**30:.1f} GiB, {os.cpu_count()} cores")


def _disk() -> Check:
    free = shutil.disk_usage(Path.cwd()).free
    return Check(subject="disk", ok=True, found=f"{free / 1e9:.0f} GB free here")
