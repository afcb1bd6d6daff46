"""Writing a safetensors file out of tensors in memory and of bytes that stand elsewhere, without holding the latter.

The bytes are those of safetensors' own ``save_file``: a header in order of position, padded to eight bytes; tensors of
the widest dtype first, then by name.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from fourfold.checkpoint.index import DTYPE_BYTES, TensorFolder
from fourfold.errors import CheckpointError

if TYPE_CHECKING:
    import torch

#: The order in which safetensors lays dtypes out.
_ORDER = (
    "U64", "I64", "F64", "F32", "U32", "I32", "BF16", "F16", "U16", "I16", "F8_E8M0", "F8_E4M3", "F8_E5M2", "I8", "U8",
    "BOOL",
)  # fmt: skip
_ALIGNMENT = 8
_LENGTH_BYTES = 8
_PIECE = 16 * 2**20


class Stored(Protocol):
    """A tensor that is written piece by piece; ``dtype`` is the safetensors name."""

    @property
    def dtype(self) -> str:
        """Its safetensors name."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""

    def pieces(self) -> Iterator[memoryview]:
        """Its bytes, in order."""


@dataclass(frozen=True)
class FileRange:
    """A tensor as it stands in another file."""

    dtype: str
    shape: tuple[int, ...]
    path: Path
    begin: int

    def pieces(self) -> Iterator[memoryview]:
        """See :class:`Stored`; :class:`CheckpointError` for a file that has become shorter."""
        left = nbytes(self)
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.begin)
            while left:
                piece = file.read(min(left, _PIECE))
                if not piece:
                    raise CheckpointError(f"{self.path}: shorter than its header says")
                left -= len(piece)
                yield memoryview(piece)


def data_begins(path: Path) -> dict[str, int]:
    """Where each tensor's bytes begin in a safetensors file; its header was checked when its folder was opened."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        header: dict[str, Any] = json.loads(file.read(length))
    return {n: _LENGTH_BYTES + length + e["data_offsets"][0] for n, e in header.items() if n != "__metadata__"}


class FileRanges:
    """Where the tensors of a folder stand, to be copied without being held."""

    def __init__(self, folder: TensorFolder) -> None:
        self._folder = folder
        self._begins: dict[str, dict[str, int]] = {}

    def of(self, name: str) -> FileRange:
        """A tensor that stands on disk as it is read."""
        entry, path = self._folder.entry(name), self._folder.path / self._folder.entry(name).file
        if entry.file not in self._begins:
            self._begins[entry.file] = data_begins(path)
        return FileRange(entry.dtype, entry.shape, path, self._begins[entry.file][name])


@dataclass(frozen=True)
class InMemory:
    """A tensor that is held; contiguous, on the CPU."""

    tensor: torch.Tensor

    @property
    def dtype(self) -> str:
        """Its safetensors name."""
        from fourfold.checkpoint.dtypes import dtype_name

        return dtype_name(self.tensor.dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return tuple(self.tensor.shape)

    def pieces(self) -> Iterator[memoryview]:
        """See :class:`Stored`."""
        from fourfold.checkpoint.dtypes import host_bytes

        yield host_bytes(self.tensor)


def nbytes(stored: Stored) -> int:
    """Bytes of data."""
    return prod(stored.shape) * DTYPE_BYTES[stored.dtype]


def write_file(path: Path, tensors: Mapping[str, Stored]) -> None:
    """Write ``tensors`` to ``path``."""
    ordered = sorted(tensors.items(), key=lambda item: (_ORDER.index(item[1].dtype), item[0]))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, stored in ordered:
        end = position + nbytes(stored)
        header[name] = {"dtype": stored.dtype, "shape": list(stored.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    with os.fdopen(descriptor, "wb") as file:
        file.write(len(text).to_bytes(_LENGTH_BYTES, "little") + text)
        for _, stored in ordered:
            for piece in stored.pieces():
                file.write(piece)
