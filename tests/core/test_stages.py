"""Stages: reuse by content, errors brought back whole, runs that end in the middle."""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fourfold.checkpoint.atomic import atomic_folder
from fourfold.errors import ConfigError, OutputError, StageError
from fourfold.progress import NoProgress
from fourfold.stages.process import describe_death, run_in_process
from fourfold.stages.request import QuantizeRequest
from fourfold.stages.store import StageStore

FOURFOLD = str(Path(sys.executable).parent / "fourfold")
QUICK = ("--quantizer", "reference", "--scheme", "W4A16")


def request(output: Path, **changes) -> QuantizeRequest:
    from fourfold.config import Recipe, Scheme
    from fourfold.demo import model_path
    from fourfold.manifest import Component

    fields = {
        "model_path": model_path(), "source_files": {}, "tokens_path": None, "tokens_sha256": None, "output": output,
        "recipe": Recipe(scheme=Scheme.W4A16, targets="attention-bf16", exclude=("*.experts.*",)),
        "unfuser": Component(name="reference"), "quantizer": Component(name="reference"), "batch_size": 1,
        "device": "cpu", "seed": 0,
    }  # fmt: skip
    return QuantizeRequest(**fields | changes)


def test_a_stage_reports_progress_and_leaves_its_artifact(tmp_path):
    seen = []

    class Recorder(NoProgress):
        def begin(self, task, *, total, unit):
            seen.append((task, total))

        def advance(self, amount=1):
            seen.append(amount)

    (tmp_path / "artifact").mkdir()
    run_in_process(Path(sys.executable), request(tmp_path / "artifact"), tmp_path / "log", Recorder())
    assert ("quantize weights", 18) in seen
    assert sum(item for item in seen if isinstance(item, int)) == 18
    assert (tmp_path / "artifact" / "manifest.json").is_file()


def test_a_stages_own_error_comes_back_with_its_type_and_text(tmp_path):
    from fourfold.manifest import Component

    wrong = request(tmp_path, quantizer=Component(name="reference", options={"algorithm": "magic"}))
    with pytest.raises(ConfigError, match=r"quantizer\.algorithm: should be 'max', .* or 'gptq' \(given: 'magic'\)"):
        run_in_process(Path(sys.executable), wrong, tmp_path / "log", NoProgress())


def test_a_crash_shows_the_end_of_its_log(tmp_path):
    with pytest.raises(StageError, match=r"the stage failed \(exit code 1\); the last lines of .*\n.*No module named"):
        run_in_process(_python_without_fourfold(tmp_path), request(tmp_path), tmp_path / "log", NoProgress())


def _python_without_fourfold(folder: Path) -> Path:
    script = folder / "python"
    script.write_text(f'#!/bin/sh\nexec {os.path.realpath(sys.executable)} -I -S "$@"\n')
    script.chmod(0o755)
    return script


@pytest.mark.parametrize(
    ("code", "how"),
    [
        (-signal.SIGKILL, "was ended by SIGKILL; the machine may be out of memory"),
        (128 + signal.SIGKILL, "was ended by SIGKILL; the machine may be out of memory"),
        (128 + signal.SIGSEGV, "was ended by SIGSEGV"),
        (128 + signal.SIGRTMIN + 1, f"was ended by signal {signal.SIGRTMIN + 1}"),  # which has no name
        (1, "failed (exit code 1)"),
        (128, "failed (exit code 128)"),
        (255, "failed (exit code 255)"),
        (0, "ended without saying that it was done (exit code 0)"),
    ],
)
def test_a_death_is_told_by_its_exit_code(tmp_path, code, how):
    (tmp_path / "log").write_text("loading\n")
    assert describe_death(code, tmp_path / "log") == (
        f"the stage {how}; the last lines of {tmp_path / 'log'}:\n  loading"
    )


def test_a_finished_stage_is_found_and_a_damaged_one_is_not(tmp_path):
    store = StageStore(tmp_path)
    with store.create("work", {"a": 1}) as (partial, final):
        (partial / "data").write_text("result")
    assert store.find("work", {"a": 1}) == final
    assert store.find("work", {"a": 2}) is None
    (final / "data").write_text("tampered")
    assert store.find("work", {"a": 1}) is None
    assert not final.exists()


def test_two_runs_of_one_stage_make_it_once(tmp_path):
    waited, made = threading.Event(), []

    def run() -> None:
        store = StageStore(tmp_path)
        with store.alone("work", {"a": 1}, waited.set):
            if store.find("work", {"a": 1}) is None:
                with store.create("work", {"a": 1}) as (partial, _):
                    if not made:
                        assert waited.wait(20), "the second run did not wait"
                    (partial / "data").write_text("result")
                made.append(1)

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(run), pool.submit(run)]:
            done.result()
    assert made == [1]


def test_an_interpreter_that_may_not_be_started_is_named(tmp_path, monkeypatch):
    """As for a user from whom the folder above the interpreter is closed."""
    interpreter = tmp_path / "bin" / "python"
    interpreter.parent.mkdir()
    interpreter.write_text("")
    monkeypatch.setattr(sys, "executable", str(interpreter))
    with (
        pytest.raises(OutputError, match=f"^{re.escape(str(interpreter))}: Permission denied, so "),
        atomic_folder(tmp_path / "stages" / "quantize"),
    ):
        run_in_process(interpreter, request(tmp_path), tmp_path / "log", NoProgress())


def start(output: Path, stages: Path) -> subprocess.Popen[str]:
    command = [FOURFOLD, "quantize", "demo", "--output", str(output), "--stages", str(stages), *QUICK]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(pattern: str, folder: Path, process: subprocess.Popen[str]) -> None:
    """Until a path below ``folder`` matches; fails when the process is faster."""
    while not list(folder.glob(pattern)):
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)


def stop_inside(pattern: str, where: Path, output: Path, stages: Path) -> subprocess.Popen[str]:
    """A run held still by SIGSTOP while a path below ``where`` matches; one that was faster is run again."""
    for _ in range(10):
        process = start(output, stages)
        wait_for(pattern, where, process)
        process.send_signal(signal.SIGSTOP)
        if list(where.glob(pattern)):
            return process
        process.kill()
        process.communicate()
        shutil.rmtree(output, ignore_errors=True)
    pytest.fail(f"never saw {pattern} twice in a row")


def stage_processes(stages: Path) -> list[str]:
    lines = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout.splitlines()
    return [line for line in lines if "fourfold.stages.child" in line and str(stages) in line]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_run_ended_in_any_stage_is_finished_by_the_same_command(tmp_path, cli_json, number):
    stages, output = tmp_path / "stages", tmp_path / "out"
    stages.mkdir()
    for pattern, where in ((".quantize-*.partial/*", stages), (".out.partial", tmp_path)):
        process = stop_inside(pattern, where, output, stages)
        process.send_signal(number)
        process.send_signal(signal.SIGCONT)
        _, stderr = process.communicate()
        assert not output.exists(), stderr
        if number == signal.SIGINT:
            assert process.returncode == 130
            assert stderr.endswith("interrupted; the same command goes on from the last finished stage\n")
            assert not list(tmp_path.rglob(".*partial"))
        deadline = time.monotonic() + 10
        while stage_processes(stages):
            assert time.monotonic() < deadline, "a stage outlived the run that started it"
            time.sleep(0.05)
    result = cli_json("quantize", "demo", "--output", output, "--stages", stages, *QUICK)
    assert result["exit_code"] == 0
    assert {s["name"]: s["reused"] for s in result["stages"]} == {"quantize": True, "export": False, "verify": False}


def test_a_killed_stage_is_an_error_that_says_so(tmp_path):
    stages = tmp_path / "stages"
    stages.mkdir()
    process = start(tmp_path / "out", stages)
    wait_for(".quantize-*.partial", stages, process)
    while subprocess.run(["pkill", "-KILL", "-f", f"fourfold.stages.child {stages}"], check=False).returncode:
        time.sleep(0.01)
    _, stderr = process.communicate()
    assert process.returncode == 2
    assert "was ended by SIGKILL" in stderr
    assert not list(stages.glob(".*partial"))


def test_a_write_the_system_refuses_is_one_line_and_leaves_nothing(tmp_path):
    """A limit on file size stands for a full disk: both come from the kernel in the middle of a shard."""
    stages, limit = tmp_path / "stages", 2**20
    command = [FOURFOLD, "quantize", "demo", "--output", str(tmp_path / "out"), "--stages", str(stages), *QUICK]
    result = subprocess.run(
        command, capture_output=True, text=True, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    assert result.returncode == 2
    assert re.search(r"fourfold: .*: File too large\n$", result.stderr), result.stderr
    assert not list(tmp_path.glob("*out*"))
    assert not [path for path in stages.glob("*quantize-*") if path.is_dir()]  # its log stays
