"""Work beside the computation: an order of kernels and copies of its own on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class OwnStream:
    """One stream for one kind of work, used by one thread at a time. On a CPU there is none, and nothing to do."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    @contextmanager
    def work(self) -> Iterator[None]:
        """What the block starts waits for nothing outside it, and has ended when the block ends.

        In the default stream a copy would stand behind every kernel that another thread has queued there. What the
        block reads must be complete before, and what it makes be given up only when no kernel reads it any more: the
        allocator reuses a stream's memory in that stream's order, and knows of no other.
        """
        if self._stream is None:
            yield
            return
        with torch.cuda.stream(self._stream):
            yield
        self._stream.synchronize()
