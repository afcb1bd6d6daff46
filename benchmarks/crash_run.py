"""One run of the command line as a process that strace can kill or stop at a counted system call.

The process is forked from this one, with everything imported, and held until strace has it; a stage's own process is
started by it as always, and held as soon as it is seen: it imports for seconds before it touches a file of the run.
Only the process that is to be hit is traced, since strace counts in each process anew. Nothing in the product knows of
this.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from crash_points import ANYWHERE, PIPE, SYSCALLS, Point

from fourfold.cli.app import app

_WAIT_S = 240.0
#: What strace writes when the signal it injects has stopped a process; somebody's `kill` has another code.
_STOPPED = re.compile(r"--- SIGSTOP {si_signo=SIGSTOP, si_code=SI_KERNEL} ---\n.*--- stopped by SIGSTOP ---\n")
_PR_CAPBSET_DROP = 24
#: By their numbers in <linux/capability.h>: DAC_OVERRIDE and DAC_READ_SEARCH, by which root passes by permissions.
_OVERRIDES = (1, 2)
_CAPABILITIES_V3 = 0x20080522


@dataclass
class Ended:
    """How a run ended: exit code (negative: by that signal), its last line on stderr, its stdout."""

    code: int
    stderr: str
    stdout: str


@dataclass
class Run:
    """``fourfold ARGUMENTS``, which work below ``folder`` and print into ``logs``.

    ``inject`` is delivered at ``point``. With ``traces`` both processes' calls are written there, as `run` and `stage`.
    ``bound``: by permissions, as everybody but root is.
    """

    arguments: list[str]
    folder: Path
    logs: Path
    point: Point | None = None
    inject: str = "KILL"
    traces: Path | None = None
    bound: bool = False
    pid: int = 0
    stage: int = 0
    #: The link of the stage's pipe in /proc.
    pipe: str = ""
    straces: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _log: Path = Path(os.devnull)
    _code: int | None = None

    @contextlib.contextmanager
    def started(self) -> Iterator[Run]:
        """This run, going on; whatever is raised in here or in the block, nothing that it started is left after it.

        What does not come to pass in time is a TimeoutError, here and in every method.
        """
        try:
            self._start()
            yield self
        finally:
            self._end()

    def _start(self) -> None:
        """Fork, stop, attach, go on; then the same with the stage's process, if that is asked for."""
        self.pid = os.fork()
        if self.pid == 0:
            self._child()
        _until(lambda: _has_stopped(self.pid) or not self._running(), "the run did not begin")
        if not self._running():
            return
        if self.traces or (self.point and not self.point.in_stage):
            self._attach(self.pid, "run")
        os.kill(self.pid, signal.SIGCONT)
        if self.traces or (self.point and self.point.in_stage):
            self._await_stage()

    def _await_stage(self) -> None:
        found: list[int] = []

        def is_there() -> bool:
            found[:] = _stages_of(self.folder)
            return bool(found) or not self._running()

        # Looked for more often than all else, so that it is held as early in its imports in every run.
        _until(is_there, "no stage was started", every_s=0.002)
        if not found:
            return
        (self.stage,) = found
        os.kill(self.stage, signal.SIGSTOP)
        _until(lambda: _has_stopped(self.stage), "the stage did not stop")
        self.pipe = str(Path(f"/proc/{self.stage}/fd/{self._event_descriptor()}").readlink())
        self._attach(self.stage, "stage")
        os.kill(self.stage, signal.SIGCONT)

    def _event_descriptor(self) -> int:
        return int(Path(f"/proc/{self.stage}/cmdline").read_bytes().split(b"\0")[-2])

    def _attach(self, pid: int, name: str) -> None:
        options = ["-y", "-s", "0", "-e", f"trace={','.join(SYSCALLS)}"]
        if self.point:
            options += ["-e", f"inject={self.point.call}:signal={self.inject}:when={self.point.number}"]
            if self.point.path != ANYWHERE:
                path = self.pipe if self.point.path == PIPE else str(self.folder / self.point.path)
                options += ["-P", path]
        self._log = (self.traces or self.logs) / (name if self.traces else "strace")
        self._log.unlink(missing_ok=True)
        self.straces.append(subprocess.Popen(
            ["strace", "-qq", "-o", self._log, *options, "-p", str(pid)],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        ))  # fmt: skip
        _until(lambda: "TracerPid:\t0" not in _status(pid), "strace did not attach")

    def _child(self) -> None:
        code = 70
        try:
            os.setsid()
            for number, name in ((1, "stdout"), (2, "stderr")):
                os.dup2(os.open(self.logs / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)
            signal.signal(signal.SIGUSR1, self._swap_pipe)
            if self.bound:
                give_up_overrides()
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

    def _swap_pipe(self, number: int, frame: FrameType | None) -> None:
        """In the run: its end of the pipe becomes one that nothing comes from, and the pipe has no reader."""
        os.dup2(os.open(os.devnull, os.O_RDONLY), int((self.logs / "descriptor").read_text(encoding="utf-8")))

    def break_pipe(self) -> None:
        """Take the reading end of the stage's pipe from the run, which lives on as the stage does."""
        links = Path(f"/proc/{self.pid}/fd")
        (descriptor,) = [link.name for link in links.iterdir() if str(link.readlink()) == self.pipe]
        (self.logs / "descriptor").write_text(descriptor, encoding="utf-8")
        os.kill(self.pid, signal.SIGUSR1)
        _until(lambda: str((links / descriptor).readlink()) == os.devnull, "the run kept its end of the pipe")

    def wait(self) -> Ended:
        """Until the process, and every process it started, is gone."""
        _until(lambda: not self._running(), "the run did not end")
        _until(self._is_untraced, "strace did not end with what it traced")
        _until(lambda: not _processes_of(self.folder), "a stage outlived the run that started it")
        texts = [(self.logs / name).read_text(encoding="utf-8", errors="replace") for name in ("stderr", "stdout")]
        assert self._code is not None
        return Ended(self._code, *texts)

    def _end(self) -> None:
        """Kill what is left. The traced first: whom strace lets go, goes on; then strace: it can hold the dead back."""

        def is_gone() -> bool:
            # Each time anew, since what is killed last may have started something.
            left = [*([self.pid] if self._running() else []), *_processes_of(self.folder)]
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for strace in self.straces:
                strace.kill()
            return not left and self._is_untraced()

        _until(is_gone, "nothing ends it")

    def _is_untraced(self) -> bool:
        return all(strace.poll() is not None for strace in self.straces)

    def _running(self) -> bool:
        """Whether it was started and has not ended; its pid is its own until this says that it has."""
        if self.pid and self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if pid else None
        return bool(self.pid) and self._code is None

    def wait_stopped(self) -> int | None:
        """Until the process that is hit has been stopped there: its pid; None when the run ended first.

        Its state in /proc does not tell: strace holds a process for a moment at every call, and at thousands of them
        while it imports.
        """
        _until(lambda: self._is_stopped() or not self._running(), "the run neither ended nor came to the point")
        return (self.stage or self.pid) if self._running() else None

    def _is_stopped(self) -> bool:
        return (
            self._log.exists() and _STOPPED.search(self._log.read_text(encoding="utf-8", errors="replace")) is not None
        )


def give_up_overrides() -> None:
    """Bind this process of root's, and all that it starts, by permissions; its interpreter stays readable to it."""
    libc = ctypes.CDLL(None, use_errno=True)
    # The bounding set is for what is started later: root gets all that is in it with every exec.
    results = [libc.prctl(_PR_CAPBSET_DROP, capability) for capability in _OVERRIDES]
    header = (ctypes.c_uint32 * 2)(_CAPABILITIES_V3, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; then the same of the higher numbers
    results.append(libc.capget(header, sets))
    for index in range(3):
        sets[index] &= ~sum(1 << capability for capability in _OVERRIDES)
    results.append(libc.capset(header, sets))
    if any(results):
        raise OSError(ctypes.get_errno(), "the capabilities could not be given up")


def _processes_of(folder: Path) -> dict[int, list[bytes]]:
    """Living processes of stages that work below ``folder``, supervisors included, with their arguments."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (process / "cmdline").read_bytes()
            state = (process / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
            if b"fourfold.stages.child" in command and os.fsencode(folder) + b"/" in command and state not in "ZX":
                found[int(process.name)] = command.split(b"\0")
    return found


def _stages_of(folder: Path) -> list[int]:
    """Those of them that are a stage's own process, not its supervisor's."""
    return [pid for pid, command in _processes_of(folder).items() if command[1:3] == [b"-m", b"fourfold.stages.child"]]


def _status(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return ""


def _has_stopped(pid: int) -> bool:
    """Of itself or by a signal, not for a moment by strace."""
    return "State:\tT" in _status(pid)


def _until(done: Callable[[], bool], failure: str, every_s: float = 0.02) -> None:
    deadline = time.monotonic() + _WAIT_S
    while not done():
        if time.monotonic() > deadline:
            raise TimeoutError(failure)
        time.sleep(every_s)
