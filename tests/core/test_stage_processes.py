"""A stage's processes: none outlives it, in whatever session it is and whatever ends the stage or its run."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from fourfold.config import Config
from fourfold.errors import StageError
from fourfold.progress import NoProgress
from fourfold.stages.process import run_in_process

#: A stand-in for a stage: starts two processes by plain forks, so that they hold the pipe of events too, both deaf to
#: SIGTERM and the second in a session of its own, as torchrun's workers; then says so and does what it is told.
STAGE = textwrap.dedent("""
    import json, os, signal, sys, time
    from pathlib import Path
    pids, what = sys.argv[1:3]
    for session in (False, True):
        reading, writing = os.pipe()
        if (pid := os.fork()) == 0:
            if session:
                os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            os.write(writing, b"deaf")
            time.sleep(600)
        os.read(reading, 4)
        with open(pids, "a") as file:
            file.write(f"{pid} ")
    os.write(int(sys.argv[-1]), b'{"event": "begin", "task": "up", "total": null, "unit": "step"}\\n')
    if what == "sleep":
        time.sleep(600)
    elif what == "done":
        os.write(int(sys.argv[-1]), b'{"event": "done"}\\n')
    elif what == "silent":
        print("the toolchain ended the process", flush=True)
        os._exit(0)
    elif what == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    else:
        parent = os.getppid()
        assert "supervisor.py" in Path(f"/proc/{parent}/cmdline").read_text()
        os.kill(parent, signal.SIGKILL)
        time.sleep(600)
""")

#: A run of such a stage, as a process that can be killed.
RUN = textwrap.dedent("""
    import sys
    from pathlib import Path
    from fourfold.config import Config
    from fourfold.progress import NoProgress
    from fourfold.stages.process import run_in_process
    run_in_process(Path(sys.argv[1]), Config(), Path(sys.argv[2]), NoProgress())
""")


def stage(folder: Path, what: str) -> Path:
    """What stands for an environment's interpreter: it runs :data:`STAGE`, whatever it is asked for."""
    (folder / "stage.py").write_text(STAGE, encoding="utf-8")
    script = folder / "python"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} {folder / "stage.py"} {folder / "pids"} {what} "$@"\n')
    script.chmod(0o755)
    return script


def living(folder: Path) -> list[int]:
    """Which of the stage's processes live, zombies not counted."""
    found = []
    for pid in map(int, (folder / "pids").read_text(encoding="utf-8").split()):
        status = Path(f"/proc/{pid}/stat")
        if status.exists() and status.read_text(encoding="utf-8").rpartition(")")[2].split()[0] not in "ZX":
            found.append(pid)
    return found


@pytest.fixture(autouse=True)
def none_left(tmp_path):
    """A test that fails leaves no process behind either."""
    yield
    for pid in living(tmp_path):
        os.kill(pid, signal.SIGKILL)


@pytest.mark.timeout(60)
def test_a_killed_stage_leaves_no_process(tmp_path):
    """As when the machine runs out of memory: the kernel ends the stage alone."""
    with pytest.raises(StageError, match="the stage was ended by SIGKILL; the machine may be out of memory"):
        run_in_process(stage(tmp_path, "killed"), Config(), tmp_path / "log", NoProgress())
    assert living(tmp_path) == []


@pytest.mark.timeout(60)
def test_a_stage_that_ends_well_leaves_no_process(tmp_path):
    run_in_process(stage(tmp_path, "done"), Config(), tmp_path / "log", NoProgress())
    assert living(tmp_path) == []


@pytest.mark.timeout(60)
def test_a_stage_that_does_not_say_it_is_done_has_not_ended_well(tmp_path):
    """As when a toolchain calls ``os._exit(0)`` in the middle: no result may be taken for one."""
    message = (
        f"the stage ended without saying that it was done (exit code 0); the last lines of {tmp_path / 'log'}:\n"
        "  the toolchain ended the process"
    )
    with pytest.raises(StageError, match=f"^{re.escape(message)}$"):
        run_in_process(stage(tmp_path, "silent"), Config(), tmp_path / "log", NoProgress())
    assert living(tmp_path) == []


@pytest.mark.timeout(60)
def test_an_interrupted_run_leaves_no_process(tmp_path):
    """The stage itself ends when it is asked to; what it started does not."""

    class Interrupting(NoProgress):
        def begin(self, task, *, total, unit):
            assert len(living(tmp_path)) == 2
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_in_process(stage(tmp_path, "sleep"), Config(), tmp_path / "log", Interrupting())
    assert living(tmp_path) == []


@pytest.mark.timeout(60)
def test_a_killed_run_leaves_no_process(tmp_path):
    """kill -9, where the run cannot do anything any more."""
    run = subprocess.Popen([sys.executable, "-c", RUN, str(stage(tmp_path, "sleep")), str(tmp_path / "log")])
    deadline = time.monotonic() + 20
    while not (tmp_path / "pids").exists() or len(living(tmp_path)) < 2:
        assert time.monotonic() < deadline, "the stage did not come up"
        time.sleep(0.05)
    run.kill()
    run.wait()
    while living(tmp_path):
        assert time.monotonic() < deadline + 20, "a process outlived the run"
        time.sleep(0.05)


@pytest.mark.timeout(60)
def test_a_killed_supervisor_is_an_error_though_the_pipe_stays_open(tmp_path):
    begun = time.monotonic()
    with pytest.raises(StageError, match="the stage was ended by SIGKILL"):
        run_in_process(stage(tmp_path, "supervisor"), Config(), tmp_path / "log", NoProgress())
    while len(living(tmp_path)) > 1:  # of the group none stays; what is in a session of its own is out of reach by now
        assert time.monotonic() - begun < 20, "the group outlived its supervisor"
        time.sleep(0.05)
