"""Reading tensors of a checkpoint by position, from any thread, into memory of their own.

:class:`fourfold.checkpoint.index.TensorFolder` maps a shard; what was touched of it stays resident, and one shard
may hold the whole model. Here exactly the bytes asked for are read, so resident memory is what the caller holds.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from math import prod
from typing import TYPE_CHECKING

import torch

from fourfold.checkpoint.dtypes import DTYPES, host_bytes
from fourfold.checkpoint.stored import data_begins
from fourfold.errors import CheckpointError

if TYPE_CHECKING:
    from fourfold.checkpoint.index import TensorFolder
    from fourfold.models.gemma4 import LinearModule

#: Bytes asked of the kernel at once, and how many threads ask.
_PIECE = 2**26
_THREADS = 4


class TensorReader:
    """The tensors of ``source``, read with positioned reads; safe to share between threads."""

    def __init__(self, source: TensorFolder) -> None:
        self._source = source
        self._begin: dict[str, int] = {}
        self._files: dict[str, int] = {}
        for file in sorted({entry.file for entry in source.tensors.values()}):
            self._files[file] = os.open(source.path / file, os.O_RDONLY)
            self._begin |= data_begins(source.path / file)

    def read(self, name: str, slices: tuple[int | slice, ...] = ()) -> torch.Tensor:
        """The tensor, or a contiguous part: an index, or a range, along its first axes. On the CPU, as stored."""
        whole, dtype = self.form(name)
        first, shape = _contiguous_part(whole, slices)
        buffer = torch.empty(prod(shape) * dtype.itemsize, dtype=torch.uint8)
        self.fill(name, buffer, first * dtype.itemsize)
        return buffer.view(dtype).reshape(shape)

    def form(self, name: str) -> tuple[tuple[int, ...], torch.dtype]:
        """Shape and dtype of a tensor; :class:`CheckpointError` for a dtype that torch has none for."""
        entry = self._source.entry(name)
        dtype = DTYPES.get(entry.dtype)
        if dtype is None:
            raise CheckpointError(
                f"{self._source.path / entry.file}: {name} has dtype {entry.dtype}, which is not read"
            )
        return entry.shape, dtype

    def module(self, module: LinearModule) -> torch.Tensor:
        """A linear's weight [O, K]."""
        return self.read(module.tensor, module.slices)

    def fill(self, name: str, buffer: torch.Tensor, start: int = 0) -> None:
        """Fill ``buffer``, contiguous and on the CPU, with the tensor's stored bytes from ``start`` on."""
        file, position = self._source.entry(name).file, self._begin[name] + start
        view = host_bytes(buffer)
        starts = range(0, len(view), _PIECE)
        if len(starts) < 2:
            self._fill_piece(view, file, position)
            return
        # Copying out of the page cache, and making the pages to copy to, is work for several processors.
        with ThreadPoolExecutor(_THREADS) as pool:
            for done in [
                pool.submit(self._fill_piece, view[first : first + _PIECE], file, position + first) for first in starts
            ]:
                done.result()

    def _fill_piece(self, view: memoryview, file: str, position: int) -> None:
        done = 0
        while done < len(view):
            got = os.preadv(self._files[file], [view[done:]], position + done)
            if got == 0:
                raise CheckpointError(f"{self._source.path / file}: shorter than its header says")
            done += got

    def close(self) -> None:
        """Close the shards."""
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files = {}


def _contiguous_part(shape: tuple[int, ...], slices: tuple[int | slice, ...]) -> tuple[int, tuple[int, ...]]:
    """First element and shape of a part given by indices and, as the last, a range."""
    first = 0
    for axis, part in enumerate(slices):
        inner = prod(shape[axis + 1 :])
        if isinstance(part, slice):
            start, stop, _ = part.indices(shape[axis])
            return first + start * inner, (stop - start, *shape[axis + 1 :])
        first += part * inner
    return first, shape[len(slices) :]
