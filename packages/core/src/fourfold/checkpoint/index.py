"""A model folder as an index of tensors: what is in which file, read one tensor (or one slice) at a time.

Only the headers are read when a folder is opened. safetensors itself checks a header against its file
(offsets inside the file, no overlap, nothing left over), so a truncated shard is found on opening.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fourfold.checkpoint.untrusted import name_fault, outside, printable
from fourfold.checkpoint.untrusted import read_json as read_json
from fourfold.errors import CheckpointError

if TYPE_CHECKING:
    import torch

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
CONFIG_FILE = "config.json"

#: What a server reads beside weights and config; copied from the source unchanged.
SIDE_FILES = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "*.jinja",
    "chat_template.json", "*processor_config.json", "generation_config.json",
)  # fmt: skip

#: safetensors dtype names -> bytes per element.
DTYPE_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "F64": 8, "I64": 8, "U64": 8,
}  # fmt: skip


@dataclass(frozen=True)
class TensorEntry:
    """Where a tensor stands and what it is. ``dtype`` is the safetensors name (``BF16``, ``F8_E4M3``, ...)."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str

    @property
    def numel(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of data on disk."""
        return self.numel * DTYPE_BYTES[self.dtype]


class TensorFolder:
    """A folder of safetensors shards: ``model.safetensors``, or the shards that the index names.

    Raises :class:`CheckpointError` for a folder without weights, a truncated shard, an index that does not
    tell the truth, or an index entry that leaves the folder.
    """

    def __init__(self, path: Path, *, index_file: str = INDEX_FILE, single_file: str = SINGLE_FILE) -> None:
        self.path = Path(path)
        self.tensors: dict[str, TensorEntry] = {}
        self._open: tuple[str, Any] | None = None
        index_path = self.path / index_file
        if index_path.is_file():
            self._read_sharded(read_json(index_path), index_path)
        elif (self.path / single_file).is_file():
            self._read_header(single_file)
        else:
            raise CheckpointError(f"{self.path}: no weights ({single_file} or {index_file})")

    def _read_sharded(self, index: Any, index_path: Path) -> None:
        weight_map = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{index_path}: no weight_map")
        for file in weight_map.values():
            if not isinstance(file, str) or Path(file).name != file or file in ("", "..") or name_fault(file):
                shown = printable(repr(file))
                raise CheckpointError(f"{index_path}: shard {shown} is not a file name inside the folder")
        for file in sorted(set(weight_map.values())):
            self._read_header(file)
        for name, file in weight_map.items():
            entry = self.tensors.get(name)
            if entry is None or entry.file != file:
                raise CheckpointError(f"{index_path}: says that {printable(name)} is in {file}, which does not hold it")
        unlisted = sorted(self.tensors.keys() - weight_map.keys())
        if unlisted:
            raise CheckpointError(
                f"{index_path}: does not list {unlisted[0]} ({len(unlisted)} unlisted), "
                f"which {self.tensors[unlisted[0]].file} holds"
            )

    def _read_header(self, file: str) -> None:
        handle = self._handle(file)
        for name in handle.keys():  # noqa: SIM118 - safetensors' handle is no mapping
            if fault := name_fault(name):
                raise CheckpointError(f"{self.path / file}: a tensor has {fault}")
            if name in self.tensors:
                raise CheckpointError(f"{self.path}: tensor {name} stands in both {self.tensors[name].file} and {file}")
            piece = handle.get_slice(name)
            if piece.get_dtype() not in DTYPE_BYTES:
                raise CheckpointError(f"{self.path / file}: tensor {name} has the unknown dtype {piece.get_dtype()}")
            self.tensors[name] = TensorEntry(name, piece.get_dtype(), tuple(piece.get_shape()), file)

    def _handle(self, file: str) -> Any:
        from safetensors import SafetensorError, safe_open

        # One shard is mapped at a time, so that resident memory stays bounded by a shard.
        if self._open is None or self._open[0] != file:
            self._open = None
            if not (self.path / file).is_file():
                raise CheckpointError(f"{self.path / file}: named by the index, but not there")
            try:
                self._open = (file, safe_open(self.path / file, framework="pt"))
            except (SafetensorError, OSError) as error:
                raise CheckpointError(
                    f"{self.path / file}: not a whole safetensors file ({printable(str(error))})"
                ) from None
        return self._open[1]

    def __contains__(self, name: object) -> bool:
        return name in self.tensors

    def __iter__(self) -> Iterator[TensorEntry]:
        """Entries in file order, then by name: the order in which reading is cheapest."""
        return iter(sorted(self.tensors.values(), key=lambda entry: (entry.file, entry.name)))

    def entry(self, name: str) -> TensorEntry:
        """The entry, or :class:`CheckpointError` naming the missing tensor."""
        try:
            return self.tensors[name]
        except KeyError:
            raise CheckpointError(f"{self.path}: tensor {name} is missing") from None

    def read(self, name: str, slices: tuple[int | slice, ...] | None = None) -> torch.Tensor:
        """The tensor, or the given part of it, in its stored dtype; only that part is read."""
        handle = self._handle(self.entry(name).file)
        if slices is None:
            return handle.get_tensor(name)  # type: ignore[no-any-return]
        return handle.get_slice(name)[slices]  # type: ignore[no-any-return]

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """``config.json``, parsed. :class:`CheckpointError` when it is absent or no JSON object."""
        config = read_json(self.path / CONFIG_FILE)
        if not isinstance(config, dict):
            raise CheckpointError(f"{self.path / CONFIG_FILE}: not a JSON object")
        return config

    def side_files(self) -> tuple[str, ...]:
        """Names of the files beside the weights and config: tokenizer, template, processor, generation config.

        :class:`CheckpointError` for one that is a link out of the folder: these files are copied, and it could be any.
        """
        names = tuple(sorted(p.name for p in self.path.iterdir() if p.is_file() and is_side_file(p.name)))
        for name in names:
            if (target := outside(self.path / name, self.path)) is not None:
                path = self.path / name
                raise CheckpointError(f"{path}: is a link out of its folder, to {target}; replace it by the file")
        return names

    def close(self) -> None:
        """Unmap the open shard."""
        self._open = None


def is_side_file(name: str) -> bool:
    """Whether a file travels unchanged from source to checkpoint: tokenizer, template, processor, generation config."""
    return any(fnmatchcase(name, pattern) for pattern in SIDE_FILES)
