"""Kill `fourfold quantize` everywhere, fill its disk, take its rights, break its pipe; what was lost?

    python benchmarks/crashes.py [--points 20] [--stages tokens quantize export verify] [--write docs/crashes.md]

Needs Linux, strace and (for disks and rights) root. Each attempt begins with the stages before the attacked one
finished. A run is killed (SIGKILL) on entering a counted system call of the stage; at others it is stopped there, the
disk filled or the folders made read-only, and let go. After each: the output is absent or whole by `verify` and its
manifest, finished stages match their hashes; then the same command must end well, reuse all that was finished, leave
nothing half-written and give the tensors of an undisturbed run, byte for byte. Prints one JSON document.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from crash_run import Ended, Point, Run, points_between

import fourfold.calibration.build
import fourfold.pipeline
import fourfold.plan  # noqa: F401 - what every run imports is imported once, before it is forked
from fourfold.checkpoint.index import read_json
from fourfold.demo import model_path
from fourfold.manifest import Manifest, sha256_file
from fourfold.plugins import build_plugin_manager
from fourfold.verify import verify_checkpoint

STAGES = ("tokens", "quantize", "export", "verify")
#: One layer's 391 modules, so that most of a run is reading and writing; both toolchains' stages go the same way.
OPTIONS = [
    "--quantizer", "reference", "--include", "*.layers.0.*",
    "--samples", "8", "--sequence-length", "64", "--batch-size", "8",
]  # fmt: skip
#: First and last line of each stage in a trace; `verify` begins with the rename that ends `export`.
WINDOWS = {
    "tokens": ("/.tokens-", '.partial", "'), "quantize": ("/.quantize-", '.partial", "'),
    "export": ('/.out.partial"', '.out.partial", "'), "verify": ('.out.partial", "', None),
}  # fmt: skip
NOBODY = 65534


class Harness:
    """A finished run to compare with, and the tally."""

    def __init__(self, root: Path, points: int) -> None:
        self.root, self.points = root, points
        self.tally: dict[str, Counter[str]] = {stage: Counter() for stage in STAGES}
        self.failures: list[str] = []
        base = root / "base"
        (root / "logs").mkdir()
        ended = self._run(base).start().wait()
        if ended.code != 0:
            raise SystemExit(f"the undisturbed run failed ({ended.code}): {ended.stderr}")
        self.base, self.tensors = base, hashes(base / "out")

    def _run(self, work: Path, inject: str = "", trace: Path | None = None, user: int | None = None) -> Run:
        arguments = ["quantize", "demo", "--output", str(work / "out"), "--stages", str(work / "stages"), *OPTIONS]
        return Run([*arguments, "--json"], work, self.root / "logs", inject, trace, user)

    def prepared(self, name: str, stage: str, folder: Path | None = None) -> Path:
        """A folder in which all stages before ``stage`` are finished; `tokens` finds the later quantize done too."""
        work = folder or self.root / name
        (work / "stages").mkdir(parents=True)
        for done in (self.base / "stages").iterdir():
            kind = done.name.partition("-")[0]
            if done.is_dir() and kind != stage:
                shutil.copytree(done, work / "stages" / done.name)
        return work

    def traced(self, stage: str) -> list[Point]:
        """Where ``stage`` can be hit, from one undisturbed run of it."""
        work = self.prepared(f"trace-{stage}", stage)
        run = self._run(work, trace=work / "trace").start()
        run.wait()
        begin, end = WINDOWS[stage]
        points = points_between(work / "trace", run.pid, begin, end, self.points)
        shutil.rmtree(work)
        return points

    def kill(self, stage: str, number: int, point: Point) -> None:
        """SIGKILL on entering ``point``, then the same command."""
        work = self.prepared(f"kill-{stage}-{number}", stage)
        ended = self._run(work, f"{point.call}:signal=KILL:when={point.number}").start().wait()
        if ended.code == 0:
            self.tally[stage]["not reached"] += 1
        else:
            self.tally[stage]["kills"] += 1
            if ended.code != -signal.SIGKILL:
                self._one_line(stage, f"killed child at {point}", ended, ("was ended by SIGKILL",))
            self._resume(stage, f"killed at {point}", work)
        shutil.rmtree(work)

    def fill(self, stage: str, point: Point) -> None:
        """At ``point`` the file system has no byte left."""
        work = self.root / f"disk-{stage}"
        work.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128m", "tmpfs", str(work)], check=True)
        try:
            self.prepared("", stage, work)
            filler = work / "filler"
            if (ended := self._stopped_at(stage, work, point, lambda: fill(filler))) is None:
                return
            self._one_line(stage, "disk full", ended, ("the disk is full; nothing was left half-written",))
            filler.unlink()
            self.tally[stage]["disk full"] += 1
            self._resume(stage, f"disk full at {point}", work)
        finally:
            subprocess.run(["umount", "-l", str(work)], check=True)

    def lock(self, stage: str, point: Point) -> None:
        """At ``point`` a user who is not root loses the right to write."""
        work = self.prepared(f"rights-{stage}", stage)
        for path in (work, *work.rglob("*")):
            os.chown(path, NOBODY, NOBODY)
        places = (work, work / "stages")

        def take() -> None:
            for place in (*places, *work.rglob(".*.partial")):
                place.chmod(0o555)

        if (ended := self._stopped_at(stage, work, point, take, user=NOBODY)) is None:
            return
        for place in (*places, *work.rglob(".*.partial")):
            place.chmod(0o755)
        self._one_line(stage, "no rights", ended, ("cannot be written (Permission denied)", "Permission denied"))
        self.tally[stage]["no rights"] += 1
        self._resume(stage, f"no rights at {point}", work, user=NOBODY)
        shutil.rmtree(work)

    def break_pipe(self, point: Point) -> None:
        """From ``point`` on, the stage's process cannot write: its pipe, and all else."""
        work = self.prepared(f"pipe-{point.number}", "quantize")
        ended = self._run(work, f"write:error=EPIPE:when={point.number}+").start().wait()
        if ended.code == 0:
            self.tally["quantize"]["not reached"] += 1
            return
        self.tally["quantize"]["broken pipe"] += 1
        if ended.code != 2:
            self.failures.append(f"broken pipe at {point}: exit code {ended.code}: {ended.stderr[-300:]}")
        self._resume("quantize", f"broken pipe at {point}", work)
        shutil.rmtree(work)

    def _stopped_at(self, stage: str, work: Path, point: Point, act: Any, user: int | None = None) -> Ended | None:
        run = self._run(work, f"{point.call}:signal=STOP:when={point.number}", user=user).start()
        if (pid := run.wait_stopped()) is None:
            self.tally[stage]["not reached"] += 1
            return None
        act()
        os.kill(pid, signal.SIGCONT)
        return run.wait()

    def _one_line(self, stage: str, what: str, ended: Ended, texts: tuple[str, ...]) -> None:
        text = ended.stderr.strip()
        if ended.code != 2 or not text.startswith("fourfold: ") or not any(part in text for part in texts):
            self.failures.append(f"{stage}, {what}: exit code {ended.code}: {text[-400:]}")

    def _resume(self, stage: str, what: str, work: Path, user: int | None = None) -> None:
        """Nothing looks finished that is not; then the same command ends well and reuses what was."""
        finished = self._finished(stage, what, work)
        ended = self._run(work, user=user).start().wait()
        if ended.code != 0:
            return self._lost(stage, f"{what}: the same command failed: {ended.stderr[-400:]}")
        reused = {s["name"] for s in json.loads(ended.stdout)["stages"] if s["reused"]}
        if finished - reused:
            return self._lost(stage, f"{what}: run again though finished: {sorted(finished - reused)}")
        if hashes(work / "out") != self.tensors:
            return self._lost(stage, f"{what}: other tensors than an undisturbed run's")
        left = [str(p.relative_to(work)) for p in work.rglob("*") if p.name.endswith(".partial")]
        left += [str(p.relative_to(work)) for p in (work / "stages").glob("unverified-*")]
        if left:
            return self._lost(stage, f"{what}: left behind: {left}")
        self.tally[stage]["resumed"] += 1
        return None

    def _finished(self, stage: str, what: str, work: Path) -> set[str]:
        """Stages that look finished; one that is not what it says is lost work."""
        finished = set()
        for folder in (work / "stages").glob("[!.]*-*/"):
            record = read_json(folder / "stage.json")["files"]
            if all(sha256_file(folder / name) == digest for name, digest in record.items()):
                finished.add(folder.name.partition("-")[0])
            else:
                self._lost(stage, f"{what}: {folder.name} looks finished and is not")
        output = work / "out"
        if output.exists():
            whole = all(sha256_file(output / n) == digest for n, digest in Manifest.read(output).files.items())
            if not whole or not verify_checkpoint(output, source=model_path()).ok:
                self._lost(stage, f"{what}: {output.name} looks finished and is not")
            finished.add("export")
        return finished

    def _lost(self, stage: str, message: str) -> None:
        self.tally[stage]["lost"] += 1
        self.failures.append(f"{stage}, {message}")


def fill(filler: Path) -> None:
    """Write until the file system takes nothing more."""
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        for size in (2**20, 2**12, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"\0" * size)


def hashes(folder: Path) -> dict[str, str]:
    """sha256 of every file that holds tensors."""
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.glob("*.safetensors"))}


def attack(harness: Harness, stages: list[str], *, is_root: bool) -> None:
    """Every kind of fault in every stage asked for."""
    for stage in stages:
        points = harness.traced(stage)
        for number, point in enumerate(points):
            harness.kill(stage, number, point)
            print(f"{stage} {number + 1}/{len(points)}", file=sys.stderr)
        own = [p for p in points if not p.in_child and p.call in ("mkdir", "fsync", "openat", "rename")]
        if is_root and stage != "verify" and own:
            harness.fill(stage, own[0])
            harness.lock(stage, own[0])
        if stage == "quantize":
            writes = [p for p in points if p.in_child and p.call == "write"]
            for point in writes[:: max(1, len(writes) // 3)][:3]:
                harness.break_pipe(point)


def table(report: dict[str, Any]) -> str:
    """The tally in Markdown."""
    columns = ("kills", "disk full", "no rights", "broken pipe", "resumed", "lost")
    lines = [f"| stage | {' | '.join(columns)} |", "|---|" + "---:|" * len(columns)]
    for stage, counts in report["stages"].items():
        lines.append(f"| {stage} | " + " | ".join(str(counts.get(c, 0)) for c in columns) + " |")
    return "\n".join(lines) + "\n"


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
        Path(root).chmod(0o755)
        harness = Harness(Path(root), arguments.points)
        attack(harness, arguments.stages, is_root=os.geteuid() == 0)
    stages = {stage: dict(harness.tally[stage]) for stage in arguments.stages}
    totals = dict(sum((harness.tally[stage] for stage in arguments.stages), Counter()))
    report = {
        "stages": stages, "totals": {"kills": 0, "resumed": 0, "lost": 0} | totals, "failures": harness.failures,
        "seconds": round(time.monotonic() - start, 1),
    }  # fmt: skip
    if arguments.write:
        page = arguments.write.read_text(encoding="utf-8")
        before, rest = page.split("<!-- crashes: begin -->\n")
        after = rest.split("<!-- crashes: end -->")[1]
        page = f"{before}<!-- crashes: begin -->\n{table(report)}<!-- crashes: end -->{after}"
        arguments.write.write_text(page, encoding="utf-8")
    print(json.dumps(report, indent=1))
    return 1 if harness.failures else 0


if __name__ == "__main__":
    sys.exit(main())
