"""Starting a stage in another environment and bringing its progress, result or error back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fourfold import errors
from fourfold.config import Config
from fourfold.progress import Progress

#: Variables of this process's environment that would mislead another interpreter, or slow it down.
_DROPPED = ("VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE")
_LOG_TAIL_LINES = 15
_GRACE_S = 5.0


def run_in_process(
    python: Path, request: Config, log: Path, progress: Progress, variables: Mapping[str, str] | None = None
) -> None:
    """Run ``request``, of a stage that the child knows, under ``python``; its output goes to ``log``.

    ``variables`` are added to the child's environment.

    Raises the stage's own error, or :class:`errors.StageError` with the end of the log when it died. The process
    and its children are gone when this returns, whatever ended it.
    """
    request_file = log.with_suffix(".request.json")
    request_file.write_text(request.model_dump_json(), encoding="utf-8")
    reading, writing = os.pipe()
    with log.open("wb") as output, os.fdopen(reading, encoding="utf-8") as events:
        command = [str(python), "-m", "fourfold.stages.child", str(request_file), str(writing)]
        with _process_group(command, writing, output, variables or {}) as process:
            os.close(writing)
            error = _follow(events, progress)
            code = process.wait()
    if error is not None:
        raise error
    if code != 0:
        raise errors.StageError(describe_death(code, log))


@contextmanager
def _process_group(
    command: list[str], writing: int, output: Any, variables: Mapping[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    environment = {k: v for k, v in os.environ.items() if k not in _DROPPED}
    # The model is a local folder by now; a stage must not wait for a network it does not need.
    environment |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", **variables}
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        pass_fds=(writing,),
        env=environment,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the whole group: politely, then for good."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(timeout=_GRACE_S)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue
        return


def _follow(events: Any, progress: Progress) -> errors.FourfoldError | None:
    """Pass events on until the pipe closes; the reported error, if there was one."""
    done = 0
    error: errors.FourfoldError | None = None
    for line in events:
        event = json.loads(line)
        match event["event"]:
            case "begin":
                done = 0
                progress.begin(event["task"], total=event["total"], unit=event["unit"])
            case "advance":
                progress.advance(event["done"] - done)
                done = event["done"]
            case "note":
                progress.note(event["text"])
            case "error":
                error = _rebuild(event["type"], event["message"])
    return error


def _rebuild(name: str, message: str) -> errors.FourfoldError:
    """The error class of that name; those with a richer constructor come back as their parent."""
    kind = getattr(errors, name, errors.StageError)
    if kind is errors.UnknownNameError:
        kind = errors.ConfigError
    return kind(message)


def describe_death(code: int, log: Path) -> str:
    """One paragraph: how the process ended and the end of its log."""
    tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_TAIL_LINES:]
    if code < 0:
        name = signal.Signals(-code).name
        hint = "; the machine may be out of memory" if name == "SIGKILL" else ""
        how = f"was ended by {name}{hint}"
    else:
        how = f"failed (exit code {code})"
    return f"the stage {how}; the last lines of {log}:\n" + "\n".join(f"  {line}" for line in tail)
