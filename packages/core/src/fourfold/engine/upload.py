"""Tensors from files to a device, through page-locked memory that is used again.

A layer of the 26B came at 11 GB/s so on an H200, at 2.5 from ordinary memory, which the driver copies itself.
"""

from __future__ import annotations

from itertools import cycle
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fourfold.checkpoint.reader import TensorReader

#: One is read into while the other is copied from.
_PIECES = 2
_PIECE_BYTES = 2**28


class Uploader:
    """Reads with ``reader`` onto ``device``; one thread at a time, copies in its current stream."""

    def __init__(self, reader: TensorReader, device: torch.device) -> None:
        self._reader, self._device = reader, device
        self._pieces: Iterator[_Piece] | None = None

    def read(self, name: str) -> torch.Tensor:
        """The tensor as it is stored. On a GPU it is complete when the stream has come so far."""
        if self._device.type != "cuda":
            return self._reader.read(name).to(self._device)
        if self._pieces is None:
            self._pieces = cycle([_Piece() for _ in range(_PIECES)])
        shape, dtype = self._reader.form(name)
        result = torch.empty(shape, dtype=dtype, device=self._device)
        wanted = result.reshape(-1).view(torch.uint8)
        for start in range(0, len(wanted), _PIECE_BYTES):
            next(self._pieces).pass_on(self._reader, name, start, wanted[start : start + _PIECE_BYTES])
        return result


class _Piece:
    """Page-locked memory, and whether it was copied from."""

    def __init__(self) -> None:
        self._memory = torch.empty(_PIECE_BYTES, dtype=torch.uint8, pin_memory=True)
        self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]

    def pass_on(self, reader: TensorReader, name: str, start: int, wanted: torch.Tensor) -> None:
        """Fill ``wanted``, on the GPU, with the bytes of a tensor from ``start`` on."""
        self._copied.synchronize()
        memory = self._memory[: len(wanted)]
        reader.fill(name, memory, start)
        wanted.copy_(memory, non_blocking=True)
        self._copied.record()
