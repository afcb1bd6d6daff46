"""Starting a stage in another environment and bringing its progress, result or error back."""

from __future__ import annotations

import json
import os
import select
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from fourfold import errors
from fourfold.config import Config
from fourfold.progress import Progress
from fourfold.supervisor import how_ended, supervised

_LOG_TAIL_LINES = 15
_POLL_MS = 500


def run_in_process(
    python: Path, request: Config, log: Path, progress: Progress, variables: Mapping[str, str] | None = None
) -> None:
    """Run ``request``, of a stage that the child knows, under ``python``; its output goes to ``log``.

    ``variables`` are added to the child's environment.

    Raises the stage's own error, or :class:`errors.StageError` with the end of the log when it died, or ended without
    saying that it was done. The process and all that it started are gone when this returns, whatever ended it
    (:mod:`fourfold.supervisor`).
    """
    request_file = log.with_suffix(".request.json")
    request_file.write_text(request.model_dump_json(), encoding="utf-8")
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as events, os.fdopen(writing, "wb") as sending, log.open("wb") as output:
        command = [str(python), "-m", "fourfold.stages.child", str(request_file), str(writing)]
        given = {"TOKENIZERS_PARALLELISM": "false", **(variables or {})}
        with supervised(command, given, output, pass_fds=(writing,)) as head:
            sending.close()
            error, is_done = _follow(_lines(events.fileno(), head), progress)
            code = head.wait()
    if error is not None:
        raise error
    if code != 0 or not is_done:
        raise errors.StageError(describe_death(code, log))


def _lines(descriptor: int, head: subprocess.Popen[bytes]) -> Iterator[bytes]:
    """What is sent, until the pipe closes; or until ``head`` has ended, should anybody else hold the pipe open."""
    rest, ready = b"", select.poll()
    ready.register(descriptor, select.POLLIN)
    while True:
        ended = head.poll() is not None
        if ready.poll(0 if ended else _POLL_MS):
            sent = os.read(descriptor, 2**16)
            *lines, rest = (rest + sent).split(b"\n")
            yield from lines
            ended = not sent
        if ended:
            return


def _follow(events: Iterable[bytes], progress: Progress) -> tuple[errors.FourfoldError | None, bool]:
    """Pass events on; the reported error, if there was one, and whether the stage said that it was done."""
    done, is_done = 0, False
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
            case "done":
                is_done = True
    return error, is_done


def _rebuild(name: str, message: str) -> errors.FourfoldError:
    """The error class of that name; those with a richer constructor come back as their parent."""
    kind = getattr(errors, name, errors.StageError)
    if kind is errors.UnknownNameError:
        kind = errors.ConfigError
    return kind(message)


def describe_death(code: int, log: Path) -> str:
    """One paragraph: how the process ended and the end of its log."""
    tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_TAIL_LINES:]
    how = how_ended(code) if code else "ended without saying that it was done (exit code 0)"
    return f"the stage {how}; the last lines of {log}:\n" + "\n".join(f"  {line}" for line in tail)
