"""A process that is started with a supervisor above it, so that nothing of it is ever left.

A stage and a server are several processes each (torchrun's workers, in sessions of their own; vLLM's engine), and one
of them may outlive the others or whoever started them. The supervisor, a small process that runs this file, starts the
command, and ends all that descends from it when the command ends, or when a pipe closes because its other end is gone:
closed by whoever stops the command, or with the process that held it, however that died (kill -9 included, where
nothing else gets a chance to act). Its exit code is the command's; a signal's number adds 128 (:func:`how_ended`).

Standard library alone, one thread beside the main one, started after the only fork.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

#: Stages and vLLM 0.32 end in under a second when asked; what hangs does not get longer than this.
_GRACE_S = 5.0
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_POLL_S = 0.1
#: Variables that would mislead another interpreter, or slow it down (without .pyc files each import takes minutes).
_DROPPED = ("VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE")


@contextlib.contextmanager
def supervised(
    command: Sequence[str], variables: Mapping[str, str], output: IO[bytes], pass_fds: Sequence[int] = ()
) -> Iterator[subprocess.Popen[bytes]]:
    """Start ``command`` under a supervisor, which is yielded; nothing of it is left after the block.

    Its output goes to ``output``; ``variables`` are added to its environment, ``pass_fds`` stay open in it.
    """
    environment = {k: v for k, v in os.environ.items() if k not in _DROPPED}
    # The model is a local folder by now; nothing that is started here may wait for a network it does not need.
    environment |= {"HF_HUB_OFFLINE": "1", **variables}
    reading, writing = os.pipe()
    with os.fdopen(reading), os.fdopen(writing, "wb") as lifeline:
        head = subprocess.Popen(
            # Isolated, as this file's folder holds modules that are named like the standard library's.
            [sys.executable, "-I", "-S", __file__, str(reading), *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=(reading, *pass_fds),
            env=environment,
            start_new_session=True,
        )
        try:
            yield head
        finally:
            lifeline.close()  # which tells the supervisor to end everything
            _wait_gone(head)


def how_ended(code: int) -> str:
    """What the exit ``code`` of a supervisor says of its command, as the end of a sentence: "failed (exit code 1)"."""
    # As a shell tells of a signal, and so the supervisor; negative where the supervisor itself was ended by one.
    number = -code if code < 0 else code - 128
    if number in signal.valid_signals():
        # Real-time signals but the first and the last have no name.
        name = next((known.name for known in signal.Signals if known == number), f"signal {number}")
        return f"was ended by {name}" + ("; the machine may be out of memory" if number == signal.SIGKILL else "")
    return f"failed (exit code {code})" if code else "ended by itself (exit code 0)"


def _wait_gone(head: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        head.wait(timeout=3 * _GRACE_S)
    if head.returncode is None or head.returncode < 0:
        # It hangs or was killed itself: its group is what can still be reached.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(head.pid, signal.SIGKILL)
        head.wait()


def main(arguments: list[str]) -> int:
    """Run the command until it or the pipe ends; nothing that descends from it is left."""
    descriptor, command = int(arguments[0]), arguments[1:]
    # A handler, not SIG_IGN: ignoring would be inherited by the command.
    signal.signal(signal.SIGTERM, _stay)
    signal.signal(signal.SIGINT, _stay)
    # Orphans of the command become this process's children, whatever session they are in: so all are found and reaped.
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    os.set_inheritable(descriptor, False)
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, close_fds=False, preexec_fn=_die_with_parent)
    threading.Thread(target=_end_with_pipe, args=(descriptor,), daemon=True).start()
    code = child.wait()
    _end_descendants()
    _reap()
    return code if code >= 0 else 128 - code


def _stay(number: int, frame: object) -> None:
    """The command decides when this process ends."""


def _die_with_parent() -> None:
    """In the child: should this supervisor itself be killed, the command follows."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _end_with_pipe(descriptor: int) -> None:
    while os.read(descriptor, 1024):
        pass
    _end_descendants()
    # The command has been killed by now, and the main thread is on its way out.


def _end_descendants() -> None:
    """Ask every descendant of this process to end, then make them."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + _GRACE_S
        told: set[int] = set()
        while (alive := _descendants()) and time.monotonic() < deadline:
            for process in alive - told:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, number)
            told |= alive
            time.sleep(_POLL_S)


def _reap() -> None:
    """Collect what has ended, so that no zombie is handed on."""
    while True:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                return
        except ChildProcessError:
            return


def _descendants() -> set[int]:
    """Living processes below this one. Zombies need no killing, and have handed their children on."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            # The second field is a name in parentheses, which may itself hold spaces and parentheses.
            state, parent = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()[:2]
        except (OSError, ValueError):
            continue
        if state not in "ZX":
            children.setdefault(int(parent), []).append(int(folder.name))
    found, waiting = set[int](), [os.getpid()]
    while waiting:
        below = children.get(waiting.pop(), [])
        found.update(below)
        waiting += below
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
