"""What every test may rely on: all toolchains' environments, made here where they are missing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

from fourfold.environments import ensure_environment, suited_environments
from fourfold.plugins import Registry, build_plugin_manager
from fourfold.progress import NoProgress

ROOT = Path(__file__).parents[1]
TESTS = Path(__file__).parent
#: Where a test waits for toolchains and servers; begun first, so that both processes end at about the same time.
LONG = ("serve_vllm", "integration", "quant_llmcompressor", "quant_modelopt", "eval")
# Two tests run at a time, and threads of two toolchains on the same cores wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A shell starts background jobs with SIGINT ignored, what they start ignores it too, and the tests may be one.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# The same examples everywhere, and none too slow for a busy machine.
settings.register_profile("fourfold", deadline=None, derandomize=True)
settings.load_profile("fourfold")
Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.hookimpl(tryfirst=True)  # before the plugin that reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of one folder share its fixtures, so they run in one process."""

    def room(item: pytest.Item) -> str:
        parts = item.path.relative_to(TESTS).parent.parts
        return "/".join(parts[:2] if parts[:1] == ("core",) else parts[:1])

    order = {name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(room(item), len(order)))
    for item in items:
        item.add_marker(pytest.mark.xdist_group(room(item)))


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
