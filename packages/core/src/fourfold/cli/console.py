"""What commands print: bars and notes on stderr, results on stdout, JSON when asked.

Much of it is text of others: names out of a stranger's file, answers of a model, a server's last words. All of it
passes through :func:`plain`, and none is read as rich's markup: ``[red]`` and ``list[int]`` are shown as they are.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from fourfold.checkpoint.untrusted import printable
from fourfold.progress import NoProgress

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID
    from rich.text import Text

    from fourfold.config import Config
    from fourfold.progress import Progress


def print_json(data: Config) -> None:
    """One JSON document on stdout."""
    sys.stdout.write(data.model_dump_json(indent=2) + "\n")


def plain(text: str) -> str:
    """``text`` fit for a terminal, line by line: what would move its cursor or colour it is escaped."""
    return "\n".join(printable(line, len(line)) for line in text.splitlines())


def say(text: object) -> None:
    """One line on stdout, or several."""
    print(plain(str(text)))


def _text(text: str, style: str = "") -> Text:
    from rich.text import Text

    return Text(plain(text), style=style)


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on stdout, as wide as it needs to be when stdout is no terminal."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=_text(title), title_justify="left", title_style="bold", header_style="bold")
    for column in header:
        table.add_column(_text(column), overflow="fold")
    for row in rows:
        table.add_row(*map(_text, row))
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    console.print(table)


def gigabytes(count: int) -> str:
    """Bytes as people compare them: GB of 10^9, or MB for a small model."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.2f} MB"


@contextmanager
def progress_bar(*, quiet: bool) -> Iterator[Progress]:
    """A bar with rate and time left on a terminal, a line a task elsewhere, nothing when quiet."""
    if quiet:
        yield NoProgress()
    elif sys.stderr.isatty():
        with _rich() as rich:
            yield _Bar(rich)
    else:
        yield _Lines()


def _rich() -> RichProgress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description:<28}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=False,
    )


class _Bar:
    """Draws each task as a bar of its own."""

    def __init__(self, rich: RichProgress) -> None:
        self._rich = rich
        self._task: TaskID | None = None
        self._unit = ""
        self._total: int | None = None

    def begin(self, task: str, *, total: int | None, unit: str) -> None:
        self._close()
        self._unit, self._total = unit, total
        self._task = self._rich.add_task(plain(task), total=total, rate="")

    def advance(self, amount: int = 1) -> None:
        if self._task is None:
            return
        speed = self._rich.tasks[self._rich.task_ids.index(self._task)].speed
        rate = f"{speed:,.1f} {self._unit}/s" if speed else ""
        self._rich.update(self._task, advance=amount, rate=rate)

    def note(self, text: str) -> None:
        self._rich.console.print(_text(f"note: {text}", "yellow"))

    def _close(self) -> None:
        if self._task is not None and self._total is None:
            # A task of unknown length is done when the next begins.
            self._rich.update(self._task, total=1, completed=1)


class _Lines:
    """One line on stderr when a task begins; for logs and pipes."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def begin(self, task: str, *, total: int | None, unit: str) -> None:
        amount = "" if total is None else f" ({total} {unit})"
        self._print(f"{task}{amount}")

    def advance(self, amount: int = 1) -> None:
        pass

    def note(self, text: str) -> None:
        self._print(f"note: {text}")

    def _print(self, text: str) -> None:
        print(f"[{time.monotonic() - self._start:7.1f} s] {plain(text)}", file=sys.stderr, flush=True)
