"""One run of the command line as a process that strace can kill, stop or fail at a counted system call.

The process is forked from this one, with everything imported, and held until strace has it; a stage's own process is
started by it as always, and followed by strace too. Nothing in the product knows of this.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from fourfold.cli.app import app

#: What changes the disk or reads from it; a run is killed on entering one of them.
SYSCALLS = ("mkdir", "openat", "write", "fsync", "rename", "unlink", "rmdir", "read", "pread64", "lseek", "newfstatat")
_LINE = re.compile(r"^(?P<pid>\d+)\s+(?P<call>\w+)\((?P<rest>.*)$")
_WAIT_S = 240.0


@dataclass(frozen=True)
class Point:
    """The ``number``-th call of ``call`` in one process; ``in_child``: of the stage's own process."""

    call: str
    number: int
    in_child: bool
    what: str


@dataclass
class Ended:
    """How a run ended: exit code (negative: by that signal), its last line on stderr, its stdout."""

    code: int
    stderr: str
    stdout: str


@dataclass
class Run:
    """``fourfold ARGUMENTS``, which work below ``folder`` and print into ``logs``.

    Under strace when ``inject`` or ``trace`` asks for it.
    """

    arguments: list[str]
    folder: Path
    logs: Path
    inject: str = ""
    trace: Path | None = None
    user: int | None = None
    pid: int = 0
    strace: subprocess.Popen[bytes] | None = field(default=None)

    def start(self) -> Run:
        """Fork, stop, attach, go on."""
        self.logs.mkdir(parents=True, exist_ok=True)
        self.pid = os.fork()
        if self.pid == 0:
            self._child()
        os.waitpid(self.pid, os.WUNTRACED)
        if self.inject or self.trace:
            options = ["-e", f"trace={','.join(SYSCALLS)}"] + (["-e", f"inject={self.inject}"] if self.inject else [])
            target = str(self.trace) if self.trace else os.devnull
            self.strace = subprocess.Popen(
                ["strace", "-f", "-qq", "-s", "300", "-o", target, *options, "-p", str(self.pid)],
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            _until(lambda: "TracerPid:\t0" not in _status(self.pid), "strace did not attach")
        os.kill(self.pid, signal.SIGCONT)
        return self

    def _child(self) -> None:
        code = 70
        try:
            os.setsid()
            for number, name in ((1, "stdout"), (2, "stderr")):
                os.dup2(os.open(self.logs / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)
            if self.user is not None:
                os.setresgid(self.user, self.user, self.user)
                os.setresuid(self.user, self.user, self.user)
            os.kill(os.getpid(), signal.SIGSTOP)
            app(self.arguments)
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        except BaseException:  # noqa: BLE001 - the fork must not go on as its parent
            traceback.print_exc()
        finally:
            with contextlib.suppress(OSError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def wait(self) -> Ended:
        """Until the process, and every process it started, is gone."""
        code: list[int] = []

        def gone() -> bool:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                code.append(os.waitstatus_to_exitcode(status))
            return bool(code)

        _until(gone, f"{self.arguments} did not end")
        if self.strace is not None:
            self.strace.wait(timeout=60)
        _until(lambda: not stages_of(self.folder), "a stage outlived the run that started it")
        texts = [(self.logs / name).read_text(encoding="utf-8", errors="replace") for name in ("stderr", "stdout")]
        return Ended(code[0], *texts)

    def wait_stopped(self) -> int | None:
        """Until one of the run's processes stands still for half a second: its pid; None when the run ended first."""
        still: Counter[int] = Counter()
        deadline = time.monotonic() + _WAIT_S
        while time.monotonic() < deadline:
            if "State:\tZ" in _status(self.pid) or not _status(self.pid):
                return None
            for pid in (self.pid, *stages_of(self.folder)):
                still[pid] = still[pid] + 1 if re.search(r"State:\t[tT]", _status(pid)) else 0
                if still[pid] >= 10:
                    return pid
            time.sleep(0.05)
        raise TimeoutError("nothing stopped")


def stages_of(folder: Path) -> list[int]:
    """Living processes of stages that work below ``folder``."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (process / "cmdline").read_bytes()
            state = (process / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
            if b"fourfold.stages.child" in command and os.fsencode(folder) in command and state != "Z":
                found.append(int(process.name))
    return found


def points_between(trace: Path, main: int, begin: str, end: str | None, count: int) -> list[Point]:
    """``count`` points of a traced run, from the line with ``begin`` to that with ``end``: every fsync and rename
    first, then others evenly over the window."""
    seen: dict[str, Counter[str]] = {}
    window: list[Point] = []
    inside = False
    for line in trace.read_text(encoding="utf-8", errors="replace").splitlines():
        match = _LINE.match(line)
        if match is None or match["call"] not in SYSCALLS:
            continue
        counter = seen.setdefault(match["pid"], Counter())
        counter[match["call"]] += 1
        inside = inside or begin in line
        if inside:
            window.append(Point(match["call"], counter[match["call"]], int(match["pid"]) != main, match["rest"][:120]))
        if inside and end is not None and end in line:
            break
    sharp = [p for p in window if p.call in ("fsync", "rename", "mkdir", "unlink", "rmdir") and not p.in_child]
    rest = [p for p in window if p not in sharp]
    chosen = sharp[:: max(1, len(sharp) // (count // 2) or 1)][: count // 2] if len(sharp) > count // 2 else sharp
    if sharp and sharp[-1] not in chosen:
        chosen.append(sharp[-1])
    step = max(1, len(rest) // max(1, count - len(chosen)))
    return chosen + rest[step // 2 :: step][: count - len(chosen)]


def _status(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return ""


def _until(done: Callable[[], bool], failure: str) -> None:
    deadline = time.monotonic() + _WAIT_S
    while not done():
        if time.monotonic() > deadline:
            raise TimeoutError(failure)
        time.sleep(0.02)
