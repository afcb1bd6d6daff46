"""What every test may rely on: all toolchains' environments, made here where they are missing."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fourfold.environments import ensure_environment, suited_environments
from fourfold.plugins import Registry, build_plugin_manager
from fourfold.progress import NoProgress

ROOT = Path(__file__).parents[1]
Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def registry() -> Registry:
    return Registry(build_plugin_manager())


@pytest.fixture(scope="session", autouse=True)
def environments(registry: Registry) -> dict[str, Path]:
    """Interpreter of each toolchain that suits this machine. A test that needs one must not pass by being skipped."""
    suited, _ = suited_environments(registry.environments())
    return {e.name: ensure_environment(e, NoProgress()) for e in suited}


@pytest.fixture(scope="session")
def cli() -> Cli:
    """Run the installed command line in a process of its own."""

    def run(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        command = [str(Path(sys.executable).parent / "fourfold"), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)

    return run


@pytest.fixture(scope="session")
def cli_json(cli: Cli) -> Callable[..., dict]:
    """The same with ``--json``; the document, and the exit code under ``exit_code``."""

    def run(*arguments: object) -> dict:
        result = cli(*arguments, "--json")
        assert result.stdout, result.stderr
        return json.loads(result.stdout) | {"exit_code": result.returncode}

    return run
