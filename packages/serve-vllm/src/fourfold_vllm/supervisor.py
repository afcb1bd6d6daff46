"""Head of a server's process group: ``python -m fourfold_vllm.supervisor FD COMMAND...``.

vLLM is several processes, and one of them may outlive the others or whoever started them. This small one starts the
command, and ends the whole group when the command ends, or when the pipe ``FD`` closes because its other end is gone:
closed by a server that is being stopped, or with the process that held it, however that died (kill -9 included, where
nothing else gets a chance to act). Its exit code is the command's; a signal's number adds 128.

Standard library alone, one thread beside the main one, started after the only fork.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

#: vLLM 0.32 ends in under a second when asked; a worker that hangs does not get longer than this.
GRACE_S = 5.0
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_POLL_S = 0.1


def main(arguments: list[str]) -> int:
    """Run the command until it or the pipe ends; nothing of the group is left after it."""
    descriptor, command = int(arguments[0]), arguments[1:]
    # A handler, not SIG_IGN: ignoring would be inherited by the command.
    signal.signal(signal.SIGTERM, _stay)
    signal.signal(signal.SIGINT, _stay)
    # Orphans of the command become this process's children, so that none is left to an init that may not reap it.
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=_die_with_parent)
    threading.Thread(target=_end_with_pipe, args=(descriptor,), daemon=True).start()
    code = child.wait()
    _end_group()
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
    _end_group()
    # The command has been killed by now, and the main thread is on its way out.


def _end_group() -> None:
    """Ask everybody in the group but this process to end, then make them."""
    for number, patience_s in ((signal.SIGTERM, GRACE_S), (signal.SIGKILL, GRACE_S)):
        deadline = time.monotonic() + patience_s
        for member in _members():
            try:
                os.kill(member, number)
            except ProcessLookupError:
                continue
        while _members() and time.monotonic() < deadline:
            time.sleep(_POLL_S)


def _reap() -> None:
    """Collect what has ended, so that no zombie is handed on."""
    while True:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                return
        except ChildProcessError:
            return


def _members() -> list[int]:
    """Living processes of this process's group, without itself. Zombies need no killing."""
    own = os.getpid()
    group = os.getpgid(own)
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == own:
            continue
        try:
            # The second field is a name in parentheses, which may itself hold spaces and parentheses.
            state, _, its_group = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
        except (OSError, ValueError):
            continue
        if state not in "ZX" and int(its_group) == group:
            found.append(int(folder.name))
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
