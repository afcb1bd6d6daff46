"""Work beside the computation: an order of kernels and copies of its own on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum, auto
from functools import cache

import torch


class Purpose(Enum):
    """What a stream is for; each is one thread's at a time."""

    FETCH = auto()
    PACK = auto()
    TO_DEVICE = auto()
    TO_HOST = auto()
    RECORD = auto()


@cache
def stream_for(purpose: Purpose, device: torch.device) -> torch.cuda.Stream:  # noqa: ARG001 - the cache has one for each
    """The one stream for ``purpose`` on a GPU.

    torch gives out 32 streams, then the first of them again. With a new one for every layer, kernels would one day be
    recorded in the very stream that another thread waits for, and the recording would fail.
    """
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


@contextmanager
def on_stream(stream: torch.cuda.Stream) -> Iterator[None]:
    """A block whose kernels and copies go to ``stream``.

    A thread's own device is GPU 0 until it says another. Going back to a stream of it, as torch's block alone does at
    its end, takes some of that GPU's memory, also where it is not the GPU that was asked for.
    """
    with torch.cuda.device(stream.device), torch.cuda.stream(stream):
        yield


class OwnStream:
    """The stream for a purpose, as a block to work in. On a CPU there is none, and nothing to do."""

    def __init__(self, purpose: Purpose, device: torch.device) -> None:
        self._stream = stream_for(purpose, device) if device.type == "cuda" else None

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
        with on_stream(self._stream):
            yield
        self._stream.synchronize()
