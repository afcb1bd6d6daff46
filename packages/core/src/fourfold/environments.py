"""One environment a toolchain, under ``.venvs/``, made by uv from its committed record.

The toolchains cannot share an environment, so a stage runs under its own interpreter. ``locks/NAME.txt`` is the
record: the workspace's one resolution as it was when a maintainer wrote it, every package with its hashes, and no
address. An environment holds exactly that, nothing is resolved to make it: an index shows other packages tomorrow,
and to somebody else. ``uv.lock`` holds the address of the index it was made with and is not committed.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path

from fourfold.errors import MissingEnvironmentError
from fourfold.hardware import detect
from fourfold.manifest import sha256_file
from fourfold.plugins import Environment
from fourfold.progress import Progress
from fourfold.versions import code_sha256, installed_sha256

#: What the root environment held when the records were written: every member without its toolchain, and the tools.
#: uv resolves that one anew (``uv run``), so this record installs nothing.
WORKSPACE_RECORD = "workspace"
_EXPORT = ("export", "-q", "--locked", "--format", "requirements.txt", "--no-header", "--no-annotate")


def workspace_root() -> Path | None:
    """The checkout this package is installed from, or None when it was installed as a wheel."""
    own = Path(__file__).resolve().parent
    # A wheel may well lie in the virtual environment of somebody else's workspace.
    return next((folder for folder in own.parents if folder / "packages" / "core" / "src" / "fourfold" == own), None)


def python_of(environment: Environment | None) -> Path | None:
    """The interpreter that has the environment's toolchain, or None while it is not set up."""
    if environment is None or _is_here(environment):
        return Path(sys.executable)
    root = workspace_root()
    if root is None:
        return None
    folder = root / ".venvs" / environment.name
    python = folder / "bin" / "python"
    installed = next(folder.glob(f"lib/python*/site-packages/{environment.provides}"), None)
    return python if python.exists() and installed and _is_current(environment, folder) else None


def _is_current(environment: Environment, folder: Path) -> bool:
    """Whether it was made to the end, and from the record that is committed now; one made by hand is taken as it is."""
    made_from = _made_from(folder)
    return not made_from.exists() or made_from.read_text(encoding="utf-8") == _record_sha256(environment)


def _made_from(folder: Path) -> Path:
    """The file beside an environment with the hash of the record it was made from."""
    return folder.with_name(f"{folder.name}.made-from")


def suited_environments(environments: tuple[Environment, ...]) -> tuple[tuple[Environment, ...], dict[str, str]]:
    """Those that are for this machine, and for each other one, by name, why not."""
    present = bool(detect())
    reasons = {e.name: reason for e in environments if (reason := e.unsuited(has_nvidia_gpu=present))}
    return tuple(e for e in environments if e.name not in reasons), reasons


def ensure_environment(environment: Environment | None, progress: Progress) -> Path:
    """The interpreter, making its environment first where it is missing.

    Raises :class:`MissingEnvironmentError` when it cannot be made here, with the command that installs it.
    """
    python = python_of(environment)
    if python is not None:
        return python
    assert environment is not None  # python_of(None) is this interpreter
    if workspace_root() is None:
        raise MissingEnvironmentError(
            f"{environment.provides} is not installed; install it with: "
            f"pip install '{environment.package}[{','.join(environment.extras)}]'"
        )
    with _alone(progress):
        # Another run may have made it meanwhile.
        python = python_of(environment) or _make(environment, progress)
    if python is None:
        raise MissingEnvironmentError(f".venvs/{environment.name} was made, but holds no {environment.provides}")
    return python


def make_environment(environment: Environment, progress: Progress) -> Path:
    """Install the record into ``.venvs/<name>``, which is made anew; returns its folder."""
    with _alone(progress):
        _make(environment, progress)
    return _require_workspace() / ".venvs" / environment.name


def _make(environment: Environment, progress: Progress) -> Path | None:
    root = _require_workspace()
    record = root / "locks" / f"{environment.name}.txt"
    if not record.is_file():
        raise MissingEnvironmentError(f"{record}: the committed record of this environment is missing")
    folder = root / ".venvs" / environment.name
    progress.begin(f"install {environment.name}", total=None, unit="step")
    # Half-installed packages look installed: until the end it is not one that was made from the record.
    _made_from(folder).write_text("being made", encoding="utf-8")
    _uv(["venv", "-q", "--clear", "--python", sys.executable, str(folder)], root)
    _uv(["pip", "sync", "-q", "--python", str(folder), str(record)], root)
    _made_from(folder).write_text(_record_sha256(environment) or "", encoding="utf-8")
    return python_of(environment)


@contextmanager
def _alone(progress: Progress) -> Iterator[None]:
    """Hold ``.venvs`` for this process: environments share one lock file, and a half-made one must not be taken."""
    folder = _require_workspace() / ".venvs"
    folder.mkdir(exist_ok=True)
    with (folder / ".lock").open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress.note("another run makes an environment; waiting for it")
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def environment_sha256(environment: Environment | None, *implementations: str) -> str:
    """Hash of what runs there, so that nothing made by other packages or other code is taken for finished.

    The packages are the installed ones of this environment, or those of the other one's record; the code is Fourfold's
    own, that of the environment's member, and of ``implementations`` (entries' ``"module:Class"``).
    """
    modules = {"fourfold"} | ({environment.package.replace("-", "_")} if environment else set())
    modules |= {implementation.partition(":")[0].partition(".")[0] for implementation in implementations}
    packages = _record_sha256(environment) if environment and not _is_here(environment) else None
    what = {"packages": packages or installed_sha256(), "code": code_sha256(tuple(sorted(modules)))}
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def _is_here(environment: Environment) -> bool:
    """Whether this interpreter has the toolchain."""
    return importlib.util.find_spec(environment.provides) is not None


def _record_sha256(environment: Environment) -> str | None:
    root = workspace_root()
    record = root / "locks" / f"{environment.name}.txt" if root else None
    return sha256_file(record) if record and record.is_file() else None


def write_records(environments: tuple[Environment, ...]) -> tuple[Path, ...]:
    """Resolve anew and write every ``locks/NAME.txt``; what a maintainer runs after moving a version or the date."""
    root = _require_workspace()
    _uv(["lock", "-q", "--upgrade"], root)
    (root / "locks").mkdir(exist_ok=True)
    written = []
    for name, selection in _records(environments).items():
        path = root / "locks" / f"{name}.txt"
        path.write_text(_uv([*_EXPORT, *selection], root), encoding="utf-8")
        written.append(path)
    return tuple(written)


def _records(environments: tuple[Environment, ...]) -> dict[str, list[str]]:
    return {WORKSPACE_RECORD: []} | {e.name: _selection(e) for e in environments}


def _selection(environment: Environment) -> list[str]:
    """Options for uv that choose a member, its extras, and no development tools."""
    extras = [argument for extra in environment.extras for argument in ("--extra", extra)]
    return ["--no-dev", "--package", environment.package, *extras]


def _require_workspace() -> Path:
    root = workspace_root()
    if root is None:
        raise MissingEnvironmentError("not in a Fourfold checkout: environments are made from its workspace")
    return root


def _uv(arguments: list[str], root: Path) -> str:
    """Run uv in the workspace and return its output; its message in a :class:`MissingEnvironmentError` otherwise."""
    uv = os.environ.get("UV") or shutil.which("uv")
    if uv is None:
        raise MissingEnvironmentError("uv is not on the PATH; install it with: pip install 'uv>=0.13.9,<0.14'")
    variables = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "UV_PROJECT_ENVIRONMENT")}
    result = subprocess.run([uv, *arguments], cwd=root, env=variables, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        detail = " ".join(result.stderr.split())[-600:]
        raise MissingEnvironmentError(f"uv {' '.join(takewhile(str.isalpha, arguments))} failed: {detail}")
    return result.stdout
