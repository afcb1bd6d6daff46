"""Kill `fourfold quantize` everywhere, fill its disk, take its rights, break its pipe; what was lost?

    python benchmarks/crashes.py [--points 20] [--stages tokens quantize export verify] [--write docs/crashes.md]

Needs Linux, strace and root (for disks and rights). Each attempt begins with the stages before the attacked one
finished. A run, or its stage's process, is killed (SIGKILL) on entering a counted system call; at others it is stopped,
the disk filled, the folders made read-only or the pipe's reader taken away, and let go. After each: the output is
absent or whole by `verify` and its manifest, finished stages match their hashes; then the same command must end well,
reuse all that was finished, leave nothing half-written and give the files of an undisturbed run, byte for byte. A point
that was not reached is a failure too. Prints one JSON document.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from crash_points import STAGES, Point, Points, choose, read_trace
from crash_run import Ended, Run

import fourfold.calibration.build
import fourfold.pipeline
import fourfold.plan  # noqa: F401 - what every run imports is imported once, before it is forked
from fourfold.checkpoint.index import read_json
from fourfold.demo import model_path
from fourfold.manifest import Manifest, sha256_file
from fourfold.plugins import build_plugin_manager
from fourfold.verify import verify_checkpoint

#: One layer's 391 modules, so that most of a run is reading and writing; both toolchains' stages go the same way.
OPTIONS = [
    "--quantizer", "reference", "--include", "*.layers.0.*",
    "--samples", "8", "--sequence-length", "64", "--batch-size", "8",
]  # fmt: skip
FAULTS = ("kills", "disk full", "no rights", "broken pipe")
#: What must have been exercised; `verify` writes nothing, and only `quantize` has a process of its own.
EXPECTED = {"tokens": FAULTS[:3], "quantize": FAULTS, "export": FAULTS[:3], "verify": ("kills", "no rights")}


class Harness:
    """A finished run to compare with, and the tally."""

    def __init__(self, root: Path, points: int) -> None:
        self.root, self.points = root, points
        self.work, self.logs = root / "work", root / "logs"
        self.tally: dict[str, Counter[str]] = {stage: Counter() for stage in STAGES}
        self.failures: list[str] = []
        self.work.mkdir()
        self.logs.mkdir()
        ended = self._ended()
        if ended.code != 0:
            raise SystemExit(f"the undisturbed run failed ({ended.code}): {ended.stderr}")
        self.base, self.files = self.work.rename(root / "base"), hashes(root / "base" / "out")

    def _run(self, point: Point | None = None, **options: Any) -> Run:
        places = ["--output", str(self.work / "out"), "--stages", str(self.work / "stages")]
        return Run(["quantize", "demo", *places, *OPTIONS, "--json"], self.work, self.logs, point, **options)

    def _ended(self, point: Point | None = None, **options: Any) -> Ended:
        with self._run(point, **options).started() as run:
            return run.wait()

    @contextlib.contextmanager
    def prepared(self, stage: str, *, small: bool = False) -> Iterator[Path]:
        """The folder, all stages before ``stage`` finished in it; `tokens` finds the later quantize done too.

        ``small``: a file system of 128 MB of its own.
        """
        self.work.mkdir()
        if small:
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128m", "tmpfs", str(self.work)], check=True)
        try:
            (self.work / "stages").mkdir()
            for done in (self.base / "stages").iterdir():
                if done.is_dir() and done.name.partition("-")[0] != stage:
                    shutil.copytree(done, self.work / "stages" / done.name)
            yield self.work
        finally:
            if small:
                subprocess.run(["umount", "-l", str(self.work)], check=True)
            shutil.rmtree(self.work)

    def traced(self, stage: str) -> Points:
        """Where ``stage`` can be hit, from one undisturbed run of it."""
        with self.prepared(stage) as work, self._run(traces=self.logs).started() as run:
            run.wait()
        calls, _ = read_trace(self.logs / "run", work, run.pipe, in_stage=False)
        process, opened = list[Point](), 0
        if stage == "quantize":
            process, opened = read_trace(self.logs / "stage", work, run.pipe, in_stage=True)
        return choose(stage, calls, process, opened, self.points)

    def kill(self, stage: str, number: int, point: Point) -> None:
        """SIGKILL on entering ``point``, or for every third of a stage's process to the run above it, then the same
        command.
        """
        with self.prepared(stage):
            if point.in_stage and number % 3 == 2:
                ended = self._stopped_at(stage, point, lambda run: os.kill(run.pid, signal.SIGKILL))
            else:
                ended = self._ended(point)
            if ended is None or ended.code == 0:
                self.failures.append(f"{stage}: not reached, or lived on: {point}")
                return
            if ended.code != -signal.SIGKILL:
                self._told(stage, f"killed at {point}", ended, "fourfold: the stage was ended by SIGKILL")
            self._resume(stage, "kills", point)

    def fill(self, stage: str, number: int, point: Point) -> None:
        """At ``point`` the file system has no byte left."""
        with self.prepared(stage, small=True) as work:
            ended = self._stopped_at(stage, point, lambda _: fill(work / "filler"))
            (work / "filler").unlink(missing_ok=True)
            if ended is not None:
                self._told(stage, f"disk full at {point}", ended, "the disk is full; nothing was left half-written\n")
                self._resume(stage, "disk full", point)

    def lock(self, stage: str, number: int, point: Point) -> None:
        """At ``point`` whoever is bound by permissions loses the right to write."""
        with self.prepared(stage) as work:

            def chmod(mode: int) -> None:
                for place in (work, work / "stages", *work.rglob(".*.partial")):
                    place.chmod(mode)

            ended = self._stopped_at(stage, point, lambda _: chmod(0o555), bound=True)
            chmod(0o755)
            if ended is not None:
                self._told(stage, f"no rights at {point}", ended, "Permission denied")
                self._resume(stage, "no rights", point, bound=True)

    def break_pipe(self, stage: str, number: int, point: Point) -> None:
        """After ``point`` the stage's pipe has no reader, and the run hears nothing more."""
        with self.prepared(stage):
            ended = self._stopped_at(stage, point, Run.break_pipe)
            if ended is not None:
                self._told(stage, f"broken pipe at {point}", ended, "BrokenPipeError: [Errno 32] Broken pipe\n")
                self._resume(stage, "broken pipe", point)

    def _stopped_at(self, stage: str, point: Point, act: Callable[[Run], None], *, bound: bool = False) -> Ended | None:
        """How the run ended that was stopped at ``point`` for ``act``; None when it never got there."""
        with self._run(point, inject="STOP", bound=bound).started() as run:
            if (pid := run.wait_stopped()) is None:
                self.failures.append(f"{stage}: not reached: {point}")
                return None
            act(run)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
            return run.wait()

    def _told(self, stage: str, what: str, ended: Ended, text: str) -> None:
        """The run failed as our errors do, one line but for the end of a stage's log, and said ``text``."""
        lines = ended.stderr.splitlines()
        whole = len(lines) == 1 or (lines and lines[0].startswith("fourfold: the stage "))
        if ended.code != 2 or not ended.stderr.startswith("fourfold: ") or not whole or text not in ended.stderr:
            self.failures.append(f"{stage}, {what}: exit code {ended.code}: {ended.stderr[-400:]}")

    def _resume(self, stage: str, fault: str, point: Point, *, bound: bool = False) -> None:
        """Count the fault. Nothing looks finished that is not; then the same command ends well and reuses what was."""
        self.tally[stage][fault] += 1
        what = f"{fault} at {point}"
        problems, finished = self._finished()
        if not problems:
            problems = self._again(finished, bound=bound)
        self.tally[stage]["lost" if problems else "resumed"] += 1
        self.failures += [f"{stage}, {what}: {problem}" for problem in problems]

    def _again(self, finished: set[str], *, bound: bool) -> list[str]:
        """What is wrong with the same command's second run."""
        ended = self._ended(bound=bound)
        if ended.code != 0:
            return [f"the same command failed: {ended.stderr[-400:]}"]
        reused = {s["name"] for s in json.loads(ended.stdout)["stages"] if s["reused"]}
        work = self.work
        left = [str(p.relative_to(work)) for p in (*work.rglob("*.partial"), *work.glob("stages/unverified-*"))]
        problems = [f"left behind: {left}"] if left else []
        if finished - reused:
            problems.append(f"run again though finished: {sorted(finished - reused)}")
        if hashes(work / "out") != self.files:
            problems.append("other files than an undisturbed run's")
        return problems

    def _finished(self) -> tuple[list[str], set[str]]:
        """What looks finished and is not, and the stages that are."""
        problems, finished = [], set()
        for folder in (self.work / "stages").glob("[!.]*-*/"):
            record = read_json(folder / "stage.json")["files"]
            if all(sha256_file(folder / name) == digest for name, digest in record.items()):
                finished.add(folder.name.partition("-")[0])
            else:
                problems.append(f"{folder.name} looks finished and is not")
        output = self.work / "out"
        if output.exists():
            finished.add("export")
            whole = all(sha256_file(output / n) == digest for n, digest in Manifest.read(output).files.items())
            if not whole or not verify_checkpoint(output, source=model_path()).ok:
                problems.append(f"{output.name} looks finished and is not")
        return problems, finished


def fill(filler: Path) -> None:
    """Write until the file system takes nothing more."""
    with filler.open("wb", buffering=0) as file:
        for size in (2**20, 2**12, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"\0" * size)


def hashes(folder: Path) -> dict[str, str]:
    """sha256 of every file, the manifest included."""
    return {p.name: sha256_file(p) for p in sorted(folder.iterdir())}


def attack(harness: Harness, stages: list[str], *, is_root: bool) -> None:
    """Every kind of fault in every stage asked for; a hang, or whatever else goes wrong on the way, is a failure."""
    for stage in stages:
        try:
            points = harness.traced(stage)
        except Exception as error:  # noqa: BLE001 - the other stages go on, and all is reported
            harness.failures.append(f"{stage}, traced: {type(error).__name__}: {error}")
            continue
        faults: list[tuple[Callable[[str, int, Point], None], Any]] = [(harness.kill, points.kills)]
        if is_root:
            faults += [(harness.fill, points.full_disks), (harness.lock, points.lost_rights)]
        faults.append((harness.break_pipe, points.broken_pipes))
        for inflict, places in faults:
            for number, point in enumerate(places):
                try:
                    inflict(stage, number, point)
                except Exception as error:  # noqa: BLE001 - the other points go on, and all is reported
                    what = f"{stage}, {inflict.__name__} at {point}"
                    harness.failures.append(f"{what}: {type(error).__name__}: {error}")
                print(f"{stage}, {inflict.__name__} {number + 1}/{len(places)}: {point}", file=sys.stderr)
        for fault in EXPECTED[stage]:
            wanted = harness.points if fault == "kills" else 1
            if harness.tally[stage][fault] < wanted and (is_root or fault not in ("disk full", "no rights")):
                harness.failures.append(f"{stage}: {fault}: {harness.tally[stage][fault]} of {wanted} were exercised")


def table(stages: dict[str, Counter[str]]) -> str:
    """The tally in Markdown; a dash for a fault that the stage cannot have."""
    columns = (*FAULTS, "resumed", "lost")
    lines = [f"| stage | {' | '.join(columns)} |", "|---|" + "---:|" * len(columns)]
    for stage, counts in stages.items():
        apply = (*EXPECTED[stage], "resumed", "lost")
        lines.append(f"| {stage} | " + " | ".join(str(counts[c]) if c in apply else "-" for c in columns) + " |")
    return "\n".join(lines) + "\n"


def write_table(page: Path, stages: dict[str, Counter[str]]) -> None:
    """Replace the table between the marks of ``page``."""
    before, rest = page.read_text(encoding="utf-8").split("<!-- crashes: begin -->\n")
    after = rest.split("<!-- crashes: end -->")[1]
    text = f"{before}<!-- crashes: begin -->\n{table(stages)}<!-- crashes: end -->{after}"
    page.write_text(text, encoding="utf-8")


def main() -> int:
    """Print the report; 0 when nothing was lost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=20)
    parser.add_argument("--stages", nargs="+", default=list(STAGES), choices=STAGES)
    parser.add_argument("--write", type=Path, help="Replace the table between the marks of this page.")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    build_plugin_manager()
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fourfold-crashes-") as root:
        harness = Harness(Path(root).resolve(), arguments.points)
        attack(harness, arguments.stages, is_root=os.geteuid() == 0)
    stages = {stage: harness.tally[stage] for stage in arguments.stages}
    totals = {"kills": 0, "resumed": 0, "lost": 0} | sum(stages.values(), Counter())
    report = {
        "stages": stages, "totals": totals, "failures": harness.failures,
        "seconds": round(time.monotonic() - start, 1),
    }  # fmt: skip
    if arguments.write:
        write_table(arguments.write, stages)
    print(json.dumps(report, indent=1))
    return 1 if harness.failures else 0


if __name__ == "__main__":
    sys.exit(main())
