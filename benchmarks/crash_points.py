"""Where a run can be hit: counted system calls on its own files and on its stage's pipe, chosen from its traces.

A point is counted by the path it is on, so it means the same call in the next run, whatever else a process reads;
every run is made in the same folder, as a note's name comes from its output's.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
STAGES = ("tokens", "quantize", "export", "verify")
#: What changes the disk or reads from it.
SYSCALLS = ("mkdir", "openat", "write", "fsync", "rename", "unlink", "rmdir", "read", "pread64")
#: The path of a point on the pipe that a stage's process tells its progress through.
PIPE = "pipe"
#: The path of a point counted over all files, those that an interpreter imports among them.
ANYWHERE = ""
_SHARP = ("fsync", "rename", "mkdir", "unlink", "rmdir")
_ON_DESCRIPTOR = re.compile(r"^(?P<call>write|fsync|read|pread64)\(\d+<(?P<path>[^>]*)>")
_ON_PATH = re.compile(r'^(?P<call>mkdir|openat|rename|unlink|rmdir)\((?:AT_FDCWD<[^>]*>, )?"(?P<path>[^"]*)"')
#: How the path begins that a stage's first and last calls are on, relative to the run's folder.
_PARTIAL = {"tokens": "stages/.tokens-", "quantize": "stages/.quantize-", "export": ".out.partial"}


@dataclass(frozen=True)
class Point:
    """The ``number``-th ``call`` on ``path`` in the run's own process or, ``in_stage``, in its stage's.

    ``path`` is relative to the run's folder, or :data:`PIPE`, or :data:`ANYWHERE`.
    """

    call: str
    path: str
    number: int
    in_stage: bool


@dataclass(frozen=True)
class Points:
    """Where one stage is attacked, a list for each kind of fault."""

    kills: Sequence[Point]
    full_disks: Sequence[Point]
    lost_rights: Sequence[Point]
    broken_pipes: Sequence[Point]


def read_trace(trace: Path, folder: Path, pipe: str, *, in_stage: bool) -> tuple[list[Point], int]:
    """All calls on what is below ``folder`` and on ``pipe``, in order; how many `openat` there were on anything."""
    calls, seen, opened = list[Point](), Counter[tuple[str, str]](), 0
    for line in trace.read_text(encoding="utf-8", errors="replace").splitlines():
        opened += line.startswith("openat(")
        match = _ON_DESCRIPTOR.match(line) or _ON_PATH.match(line)
        if match is None:
            continue
        path = Path(match["path"])
        if not (own := path.is_relative_to(folder)) and match["path"] != pipe:
            continue
        name = str(path.relative_to(folder)) if own else PIPE
        seen[match["call"], name] += 1
        calls.append(Point(match["call"], name, seen[match["call"], name], in_stage))
    return calls, opened


def choose(stage: str, run: list[Point], process: list[Point], opened: int, count: int) -> Points:
    """``count`` points to kill at, and some for each other fault; of what ``run`` and the stage's ``process`` called.

    A stopped process has made the call it is stopped at: a fault there is felt by the ones after it.
    """
    begin, end = _window(stage, run)
    # The pipe is not there yet when the run's calls begin to be counted.
    own = [p for p in run[begin:end] if p.path != PIPE]
    # The run makes the folder, waits for the process, and then completes and renames it.
    first = next((i for i, p in enumerate(own) if p.call == "mkdir"), -1) + 1
    calls = [*own[:first], *process, *own[first:]] if stage == "quantize" else own
    starts = [Point("openat", ANYWHERE, opened * n // 4, in_stage=True) for n in (1, 2, 3) if process]
    writes = [i for i, p in enumerate(calls) if p.call == "write" and p.path != PIPE]
    # The last call that must not be allowed any more: the rename into place or, in `verify`, the note's removal.
    refused = max(i for i, p in enumerate(calls) if p.call in ("rename", "unlink"))
    held = [i for i, p in enumerate(calls) if p.call in ("mkdir", "openat", "write") and p.path != PIPE]
    told = [p for p in process if p.path == PIPE and p.call == "write"]
    few = max(1, count // 6)
    return Points(
        kills=_kills(calls, starts, count),
        full_disks=spread([calls[i] for i in held if i < writes[-1]], few) if writes else [],
        lost_rights=spread([calls[i] for i in held if i < refused], few),
        # How many there are depends on the time taken, and after the last of them nothing more is told.
        broken_pipes=spread(told[: len(told) // 2 + 1], max(1, count * 3 // 10)),
    )


def spread(items: Sequence[T], count: int) -> list[T]:
    """``count`` of the items evenly, the first and the last among them; the middle one where only one is asked for."""
    if len(items) <= count:
        return list(items)
    if count < 2:
        return [items[len(items) // 2]][:count]
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


def _window(stage: str, run: list[Point]) -> tuple[int, int]:
    """From the stage's first call to the `fsync` after its last rename; `verify` follows that of `export`."""
    prefix = _PARTIAL["export" if stage == "verify" else stage]
    begin = next(i for i, p in enumerate(run) if p.path.startswith(prefix))
    renamed = max(i for i, p in enumerate(run) if p.call == "rename" and p.path.startswith(prefix))
    end = next(i for i in range(renamed, len(run)) if run[i].call == "fsync") + 1
    return (end, len(run)) if stage == "verify" else (begin, end)


def _kills(calls: list[Point], starts: list[Point], count: int) -> list[Point]:
    """Half where the disk is changed for good, the final rename and what follows it always; the others evenly."""
    sharp = [p for p in calls if p.call in _SHARP]
    last = max((i for i, p in enumerate(sharp) if p.call in ("rename", "unlink")), default=0)
    final = sharp[last : last + 2]
    chosen = [*final, *spread(sharp[:last], max(0, count // 2 - len(final)))][:count]
    chosen += spread(starts, min(len(starts), count - len(chosen)))
    rest = [p for p in calls if p not in chosen]
    return chosen + spread(rest, count - len(chosen))
