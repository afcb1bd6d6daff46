"""A disk with no byte left, no right to write, a death in `verify`: one line, and the same command finishes."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fourfold.checkpoint.atomic import atomic_folder
from fourfold.errors import OutputError
from fourfold.verify import verify_checkpoint

Moment = Callable[[Path], bool]
FOURFOLD = Path(sys.executable).parent / "fourfold"
#: Root without the capability that lets it pass by permissions: what any owner of the folders is.
WITHOUT_OVERRIDE = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search")
#: One layer and few tokens: the files matter here, not the arithmetic.
OPTIONS = (
    "--quantizer", "reference", "--include", "*.layers.0.*",
    "--samples", "4", "--sequence-length", "64", "--batch-size", "4",
)  # fmt: skip
STAGES = ("tokens", "quantize", "export")
#: A path that is there while the stage runs.
PARTIAL = {"tokens": "stages/.tokens-*.partial", "quantize": "stages/.quantize-*.partial/*", "export": ".out.partial"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, cli_json) -> Path:
    """Stages and checkpoint of an undisturbed run."""
    work = tmp_path_factory.mktemp("finished")
    result = cli_json("quantize", "demo", "--output", work / "out", "--stages", work / "stages", *OPTIONS)
    assert result["exit_code"] == 0
    return work


def prepare(work: Path, finished: Path, stage: str) -> None:
    """All stages before ``stage`` are there; for ``tokens``, the one after it too."""
    (work / "stages").mkdir(parents=True)
    for folder in finished.glob("stages/*-*/"):
        if not folder.name.startswith(stage):
            shutil.copytree(folder, work / "stages" / folder.name)


def command(work: Path) -> list[str]:
    places = ("--output", str(work / "out"), "--stages", str(work / "stages"))
    return [str(FOURFOLD), "quantize", "demo", *places, *OPTIONS]


def inside(stage: str) -> Moment:
    """While a stage writes; of the export before its note, after which nothing more needs room or rights."""
    return lambda work: bool(list(work.glob(PARTIAL[stage]))) and not noted(work)


def verifying(work: Path) -> bool:
    """After the export's rename, before the run's end."""
    return (work / "out").exists() and noted(work)


def noted(work: Path) -> bool:
    return bool(list(work.glob("stages/unverified-*")))


@contextlib.contextmanager
def stopped(work: Path, moment: Moment, prefix: tuple[str, ...] = ()) -> Iterator[subprocess.Popen[str]]:
    """A run, and the stage's process if there is one, held still at a moment; one that came too late begins anew."""
    before = set((work / "stages").iterdir())
    for _ in range(10):
        process = subprocess.Popen(
            [*prefix, *command(work), "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        while not moment(work):
            assert process.poll() is None, process.communicate()
            time.sleep(0.002)
        process.send_signal(signal.SIGSTOP)  # before the list of processes, which takes its time
        held = [process.pid]
        for pid in stage_processes(work):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
                held.append(pid)
        in_time = moment(work)
        try:
            if in_time:
                yield process
        finally:
            for pid in held:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
        if in_time:
            return
        process.kill()
        process.communicate()
        shutil.rmtree(work / "out", ignore_errors=True)
        for path in set((work / "stages").iterdir()) - before:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    pytest.fail("never saw the moment while the run stood still")


def stage_processes(work: Path) -> list[int]:
    listing = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
    return [
        int(line.split()[0]) for line in listing.splitlines() if "fourfold.stages.child" in line and str(work) in line
    ]


def tensors(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


def finish(work: Path, finished: Path, stage: str, cli_json) -> None:
    """Nothing is left of the interrupted stage; the same command ends it, and what was done stays done."""
    assert not list(work.rglob("*.partial"))
    assert not (work / "out").exists()
    result = cli_json(*command(work)[1:])
    assert result["exit_code"] == 0
    done = {s["name"] for s in result["stages"] if s["reused"]}
    assert done == {"tokens", "quantize"} - {stage}
    assert tensors(work / "out") == tensors(finished / "out")


def fill(folder: Path) -> Path:
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (2**20, 2**12, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"\0" * size)
    return filler


@pytest.fixture
def disk(tmp_path) -> Iterator[Path]:
    """A file system of 128 MB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=128m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mount.returncode:
        pytest.skip(f"mounting a file system of one's own is not allowed here: {mount.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("stage", STAGES)
def test_a_full_disk_is_one_line_and_room_is_all_it_takes(stage, disk, finished, cli_json):
    prepare(disk, finished, stage)
    with stopped(disk, inside(stage)) as process:
        filler = fill(disk)
        assert shutil.disk_usage(disk).free == 0
    _, stderr = process.communicate()
    assert process.returncode == 2, stderr
    assert stderr.startswith(f"fourfold: {disk}")
    assert stderr.endswith(": the disk is full; nothing was left half-written\n")
    assert stderr.count("\n") == 1
    filler.unlink()
    finish(disk, finished, stage, cli_json)


def test_a_copy_onto_a_full_disk_names_the_disk_and_not_what_was_copied(disk, tmp_path):
    source = tmp_path / "config.json"
    source.write_bytes(bytes(2**14))
    fill(disk)
    with pytest.raises(OutputError) as caught, atomic_folder(disk / "out") as folder:
        shutil.copyfile(source, folder / "config.json")
    assert str(caught.value) == f"{disk / 'out'}: the disk is full; nothing was left half-written"


@pytest.mark.skipif(os.geteuid() != 0, reason="takes a capability from root; others never had it")
@pytest.mark.parametrize("stage", STAGES)
def test_a_right_lost_in_a_stage_is_one_line(stage, tmp_path, finished, cli_json):
    work = tmp_path / "work"
    prepare(work, finished, stage)
    with stopped(work, inside(stage), WITHOUT_OVERRIDE) as process:
        places = [work, work / "stages", *(p for p in work.rglob("*.partial"))]
        for place in places:
            place.chmod(0o555)
    _, stderr = process.communicate()
    for place in places:
        with contextlib.suppress(FileNotFoundError):
            place.chmod(0o755)
    assert process.returncode == 2, stderr
    assert stderr.startswith("fourfold: ")
    assert stderr.count("\n") == 1
    assert "cannot be written (Permission denied)" in stderr
    for partial in work.rglob("*.partial"):
        shutil.rmtree(partial)  # what nobody had the right to remove
    finish(work, finished, stage, cli_json)


@pytest.mark.skipif(os.geteuid() != 0, reason="takes a capability from root; others never had it")
def test_a_right_lost_while_verifying_is_one_line(tmp_path, finished, cli_json):
    """The checkpoint is there; only the note on it may not be removed."""
    work = tmp_path / "work"
    prepare(work, finished, "export")
    with stopped(work, verifying, WITHOUT_OVERRIDE) as process:
        (work / "stages").chmod(0o555)
    _, stderr = process.communicate()
    (work / "stages").chmod(0o755)
    (note,) = work.glob("stages/unverified-*")
    assert process.returncode == 2
    assert stderr == f"fourfold: {note}: cannot be written (Permission denied)\n"
    result = cli_json(*command(work)[1:])
    assert result["exit_code"] == 0
    assert [s["name"] for s in result["stages"] if not s["reused"]] == ["verify"]
    assert tensors(work / "out") == tensors(finished / "out")
    assert not note.exists()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_run_ended_while_verifying_verifies_what_it_wrote(number, tmp_path, finished, cli_json):
    prepare(tmp_path, finished, "export")
    with stopped(tmp_path, verifying) as process:
        written = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir()}
        process.send_signal(number)
    process.communicate()
    assert process.returncode == (-signal.SIGKILL if number == signal.SIGKILL else 130)
    assert verify_checkpoint(tmp_path / "out").ok
    result = cli_json(*command(tmp_path)[1:])
    assert result["exit_code"] == 0
    assert [s["name"] for s in result["stages"] if not s["reused"]] == ["verify"]
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir()} == written
    assert tensors(tmp_path / "out") == tensors(finished / "out")
    assert not list(tmp_path.glob("stages/unverified-*"))


@pytest.mark.parametrize("change", ["command", "file", "extra"])
def test_a_folder_that_is_not_the_killed_runs_is_refused_as_ever(change, tmp_path, finished, cli):
    prepare(tmp_path, finished, "export")
    with stopped(tmp_path, verifying) as process:
        process.kill()
    process.communicate()
    arguments = command(tmp_path)[1:]
    match change:
        case "command":
            arguments = [*arguments, "--layout", "compressed-tensors"]
        case "file":
            with (tmp_path / "out" / "model.safetensors").open("r+b") as file:
                file.seek(-1, os.SEEK_END)
                file.write(b"\1")
        case "extra":
            (tmp_path / "out" / "mine.txt").write_text("kept", encoding="utf-8")
    result = cli(*arguments, "--json")
    assert result.returncode == 2
    assert result.stderr == f"fourfold: {tmp_path / 'out'}: output folder is not empty; choose another or remove it\n"
