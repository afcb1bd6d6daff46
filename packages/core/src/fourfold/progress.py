"""Progress as events: a stage reports, and whoever runs it draws a bar or writes lines.

An event is a small JSON object; :class:`EventProgress` writes one a line to a pipe, at most ten a second.
"""

from __future__ import annotations

import json
import time
from typing import IO, Protocol

_MIN_INTERVAL_S = 0.1


class Progress(Protocol):
    """What a stage may say while it works. One task is open at a time."""

    def begin(self, task: str, *, total: int | None, unit: str) -> None:
        """Open a task of ``total`` units (None: unknown); closes the one before."""

    def advance(self, amount: int = 1) -> None:
        """``amount`` more units of the open task are done."""

    def note(self, text: str) -> None:
        """Something the user should read once."""


class NoProgress:
    """Says nothing."""

    def begin(self, task: str, *, total: int | None, unit: str) -> None:
        """Nothing."""

    def advance(self, amount: int = 1) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""


class EventProgress:
    """Writes events as JSON lines to ``stream``."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._done = 0
        self._total: int | None = None
        self._last = 0.0

    def emit(self, event: str, **fields: object) -> None:
        """One event, one line."""
        self._stream.write(json.dumps({"event": event, **fields}) + "\n")
        self._stream.flush()

    def begin(self, task: str, *, total: int | None, unit: str) -> None:
        """See :class:`Progress`."""
        self._done, self._total = 0, total
        self.emit("begin", task=task, total=total, unit=unit)

    def advance(self, amount: int = 1) -> None:
        """See :class:`Progress`. Frequent calls are merged; the last one of a task is always sent."""
        self._done += amount
        now = time.monotonic()
        if now - self._last >= _MIN_INTERVAL_S or self._done == self._total:
            self._last = now
            self.emit("advance", done=self._done)

    def note(self, text: str) -> None:
        """See :class:`Progress`."""
        self.emit("note", text=text)
