"""safetensors files read with suspicion: headers checked in full, then bytes by position, nothing mapped.

A reader for the verifier alone. A file that lies is not an exception here but a list of faults, so that the rest of
the folder can still be checked; and because nothing is mapped, resident memory is that of one tensor, whatever the
size of a shard.

Format: 8 bytes little-endian header length N, N bytes of JSON, then the data. Every tensor's ``data_offsets`` count
from the end of the header; together they cover the data without overlap and without holes.
Source: the safetensors format description.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from fourfold.checkpoint.index import DTYPE_BYTES, TensorEntry
from fourfold.checkpoint.untrusted import MAX_LARGE_JSON_VALUES, name_fault, open_regular, parse_json, printable
from fourfold.errors import CheckpointError

if TYPE_CHECKING:
    import torch

#: The limit of the safetensors library itself.
MAX_HEADER_BYTES = 100_000_000
_LENGTH_BYTES = 8
_MAX_OPEN_FILES = 8


@dataclass(frozen=True)
class StoredTensor(TensorEntry):
    """A tensor and where its bytes begin in its file."""

    begin: int = 0


@dataclass(frozen=True)
class Stamp:
    """What tells a file from another one put in its place, or from itself after a change."""

    device: int
    inode: int
    size: int
    modified_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Stamp:
        """From what the system says of an open file."""
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


@dataclass
class Header:
    """What a file's header says, and what is wrong with it. A file with faults may still have readable tensors."""

    stamp: Stamp | None = None
    tensors: list[StoredTensor] = field(default_factory=list)
    metadata: dict[str, str] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    duplicates: list[str] = field(default_factory=list)


def read_header(path: Path) -> Header:
    """Read and check the header of ``path``; every fault is noted, none raised."""
    header = Header()
    try:
        descriptor, status = open_regular(path)
        with os.fdopen(descriptor, "rb") as file:
            header.stamp = Stamp.of(status)
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            if status.st_size < _LENGTH_BYTES or length > status.st_size - _LENGTH_BYTES:
                header.faults.append(f"is {status.st_size} bytes long, its header alone claims {length}")
                return header
            if length > MAX_HEADER_BYTES:
                header.faults.append(f"has a header of {length} bytes; the limit is {MAX_HEADER_BYTES}")
                return header
            text = file.read(length)
    except OSError as error:
        header.faults.append(f"cannot be read ({error.strerror or error})")
        return header
    _parse(text, header, path.name, data_bytes=status.st_size - _LENGTH_BYTES - length)
    return header


def _parse(text: bytes, header: Header, file: str, *, data_bytes: int) -> None:
    try:
        table, twice = parse_json(text, MAX_LARGE_JSON_VALUES)
    except ValueError as error:
        header.faults.append(f"has a header that is no JSON in UTF-8 ({error})")
        return
    if not isinstance(table, dict):
        header.faults.append("has a header that is no flat JSON object")
        return
    header.duplicates = [key for key in twice if key in table]
    header.faults += [f"has the key {printable(key)!r} twice in one entry" for key in twice if key not in table][:1]
    metadata = table.pop("__metadata__", {})
    if isinstance(metadata, dict):
        header.metadata = {str(key): str(value) for key, value in metadata.items()}
    else:
        header.faults.append("has a __metadata__ that is no JSON object")
    spans = []
    for name, entry in table.items():
        if fault := name_fault(name):
            header.faults.append(f"has {fault}")
            continue
        checked = _entry(name, entry, data_bytes)
        if isinstance(checked, str):
            header.faults.append(checked)
            continue
        dtype, shape, begin, end = checked
        spans.append((begin, end, name))
        if end <= data_bytes:
            start = _LENGTH_BYTES + len(text) + begin
            header.tensors.append(StoredTensor(name, dtype, shape, file, start))
    _check_spans(spans, header, data_bytes)


def _entry(name: str, entry: Any, data_bytes: int) -> tuple[str, tuple[int, ...], int, int] | str:
    """Dtype, shape, begin, end of one header entry; or the fault it has."""
    if not isinstance(entry, dict):
        return f"describes {name!r} with no JSON object"
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        return f"gives {name!r} the unknown dtype {dtype!r}"
    if not isinstance(shape, list) or len(shape) > 8 or not all(type(n) is int and 0 <= n < 2**48 for n in shape):
        return f"gives {name!r} the impossible shape {_short(shape)}"
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(n) is int and n >= 0 for n in offsets):
        return f"gives {name!r} the impossible offsets {_short(offsets)}"
    begin, end = offsets
    if end < begin:
        return f"gives {name!r} the impossible offsets {_short(offsets)}"
    needed = prod(shape) * DTYPE_BYTES[dtype]
    if end - begin != needed:
        return f"gives {name!r} {end - begin} bytes; {dtype} {shape} needs {needed}"
    if begin > data_bytes and needed == 0:
        return f"puts {name!r} at {begin}, after the end of the data ({data_bytes})"
    return dtype, tuple(shape), begin, end


def _check_spans(spans: list[tuple[int, int, str]], header: Header, data_bytes: int) -> None:
    position = 0
    for begin, end, name in sorted(spans):
        if begin < position:
            header.faults.append(f"lets {name!r} overlap the tensor before it")
        elif begin > position:
            header.faults.append(f"leaves a hole of {begin - position} bytes before {name!r}")
        if end > data_bytes >= position:
            header.faults.append(f"is truncated: {name!r} ends at byte {end} of the data, which has {data_bytes}")
        position = max(position, end)
    if position < data_bytes:
        header.faults.append(f"has {data_bytes - position} bytes after its last tensor")


def _short(value: object) -> str:
    return printable(str(value), 120)


class TensorReader:
    """Reads tensors of one folder by position. A few files stay open; close it, or use it as a context.

    A file that is no longer the one whose header was read (``headers``) is a :class:`CheckpointError`.
    """

    def __init__(self, folder: Path, headers: Mapping[str, Header]) -> None:
        self._folder, self._headers = folder, headers
        self._files: OrderedDict[str, int] = OrderedDict()
        self.bytes_read = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the open files."""
        while self._files:
            os.close(self._files.popitem()[1])

    def read(self, tensor: StoredTensor, slices: tuple[int | slice, ...] = ()) -> torch.Tensor:
        """The tensor in its stored dtype, or the part that ``slices`` selects.

        ``slices`` are leading indices and at most one range of rows after them, so the part is contiguous.
        Raises :class:`CheckpointError` naming the file when it cannot be read.
        """
        first, shape = contiguous_part(tensor.shape, slices)
        return self.read_span(tensor, first, prod(shape)).reshape(shape)

    def read_span(self, tensor: StoredTensor, first: int, count: int) -> torch.Tensor:
        """``count`` elements from element ``first`` on, flat, in the stored dtype."""
        import torch

        size = DTYPE_BYTES[tensor.dtype]
        data = torch.empty(count * size, dtype=torch.uint8)
        self._fill(tensor, data, tensor.begin + first * size)
        self.bytes_read += data.numel()
        return data.view(_torch_dtype(tensor.dtype))

    def _fill(self, tensor: StoredTensor, data: torch.Tensor, position: int) -> None:
        view = memoryview(data.numpy().data)
        try:
            descriptor = self._descriptor(tensor.file)
            while view:
                count = os.preadv(descriptor, [view[: 2**30]], position)
                if count == 0:
                    raise CheckpointError(f"{self._folder / tensor.file}: ends inside {tensor.name}")
                view, position = view[count:], position + count
        except OSError as error:
            raise CheckpointError(f"{self._folder / tensor.file}: cannot be read ({error.strerror})") from None

    def _descriptor(self, file: str) -> int:
        if file not in self._files:
            if len(self._files) >= _MAX_OPEN_FILES:
                os.close(self._files.popitem(last=False)[1])
            descriptor, status = open_regular(self._folder / file)
            self._files[file] = descriptor
            self._require_same(file, status)
        self._files.move_to_end(file)
        return self._files[file]

    def require_unchanged(self) -> None:
        """Raise :class:`CheckpointError` when a file was changed, or exchanged, since its header was read."""
        for file in self._headers:
            try:
                self._require_same(file, (self._folder / file).stat())
            except OSError as error:
                raise CheckpointError(f"{self._folder / file}: cannot be read ({error.strerror})") from None

    def _require_same(self, file: str, status: os.stat_result) -> None:
        stamp = self._headers[file].stamp if file in self._headers else None
        if stamp is not None and Stamp.of(status) != stamp:
            raise CheckpointError(f"{self._folder / file}: was changed while it was read; verify it again")


def contiguous_part(shape: tuple[int, ...], slices: tuple[int | slice, ...]) -> tuple[int, tuple[int, ...]]:
    """First element and shape of the part that leading indices, then one range of rows, select."""
    first = 0
    for step in slices:
        inner = prod(shape[1:])
        if isinstance(step, int):
            first, shape = first + step * inner, shape[1:]
        else:
            start, stop, _ = step.indices(shape[0])
            first, shape = first + start * inner, (stop - start, *shape[1:])
    return first, shape


def _torch_dtype(name: str) -> torch.dtype:
    import torch

    known = {
        "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "F8_E4M3": torch.float8_e4m3fn,
        "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu, "I16": torch.int16, "U16": torch.uint16,
        "F16": torch.float16, "BF16": torch.bfloat16, "I32": torch.int32, "U32": torch.uint32, "F32": torch.float32,
        "F64": torch.float64, "I64": torch.int64, "U64": torch.uint64,
    }  # fmt: skip
    return known[name]
