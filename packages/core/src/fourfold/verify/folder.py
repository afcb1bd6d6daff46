"""A folder of weights as it really is: its files, their headers, and what the index claims about them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fourfold.checkpoint.index import INDEX_FILE, SINGLE_FILE
from fourfold.checkpoint.untrusted import name_fault, outside, read_json
from fourfold.errors import CheckpointError
from fourfold.manifest import sha256_file
from fourfold.verify.shards import Header, StoredTensor, read_header


@dataclass
class Folder:
    """Files, shards and tensors of a folder. Reading it raises only when it is no folder at all.

    ``claims`` is the index's ``weight_map`` (None without an index); ``copies`` are tensors that stand more than
    once, with both places; ``strays`` are safetensors files that nothing names; ``escapes`` are index entries
    that are no plain file name, and ``links`` files that are links out of the folder, with where they lead: neither is
    ever opened.
    """

    path: Path
    files: tuple[str, ...]
    links: dict[str, Path] = field(default_factory=dict)
    index: dict[str, Any] | None = None
    index_fault: str | None = None
    claims: dict[str, str] | None = None
    shards: dict[str, Header] = field(default_factory=dict)
    tensors: dict[str, StoredTensor] = field(default_factory=dict)
    copies: list[tuple[str, str, str]] = field(default_factory=list)
    strays: tuple[str, ...] = ()
    escapes: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    _digests: dict[str, str] = field(default_factory=dict)

    def json(self, name: str) -> Any:
        """A JSON file of the folder, or None when it is not there; :class:`CheckpointError` when it is broken."""
        return read_json(self.path / name) if name in self.files else None

    def sha256(self, name: str) -> str:
        """Hex digest of a file; the reason in brackets where it cannot be read. Links that leave are not opened."""
        if name not in self._digests:
            try:
                if name in self.links:
                    raise OSError(None, "a link out of the folder")
                self._digests[name] = sha256_file(self.path / name)
            except OSError as error:
                self._digests[name] = f"({error.strerror})"
        return self._digests[name]

    @property
    def in_file_order(self) -> list[StoredTensor]:
        """All tensors, by file, then by position in it."""
        return sorted(self.tensors.values(), key=lambda tensor: (tensor.file, tensor.begin, tensor.name))


def read_folder(path: Path) -> Folder:
    """Read names and headers of a folder; :class:`CheckpointError` when there is no such folder."""
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such folder")
    try:
        found = (p for p in path.rglob("*") if p.is_symlink() or not p.is_dir())
        names = (p.relative_to(path) for p in found)
        # Hidden ones belong to git and to the hub's download cache; no loader reads them.
        files = tuple(sorted(str(name) for name in names if not any(part.startswith(".") for part in name.parts)))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be listed ({error.strerror})") from None
    leads = {name: outside(path / name, path) for name in files}
    folder = Folder(path, files, {name: target for name, target in leads.items() if target is not None})
    for file in _shard_names(folder):
        header = read_header(path / file)
        folder.shards[file] = header
        folder.copies += [(name, file, file) for name in header.duplicates]
        for tensor in header.tensors:
            if tensor.name in folder.tensors:
                folder.copies.append((tensor.name, folder.tensors[tensor.name].file, file))
            else:
                folder.tensors[tensor.name] = tensor
    return folder


def _shard_names(folder: Folder) -> list[str]:
    present = [name for name in folder.files if name.endswith(".safetensors") and "/" not in name]
    present = [name for name in present if name not in folder.links]
    if INDEX_FILE not in folder.files:
        if SINGLE_FILE not in present:
            return present
        folder.strays = tuple(name for name in present if name != SINGLE_FILE)
        return [SINGLE_FILE]
    try:
        index = folder.json(INDEX_FILE)
    except CheckpointError as error:
        folder.index_fault = str(error)
        return present
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        folder.index_fault = "has no weight_map from tensor names to file names"
        return present
    folder.index, folder.claims = index, weight_map
    named = sorted(set(weight_map.values()))
    folder.escapes = tuple(name for name in named if not _is_plain(name))
    plain = [name for name in named if _is_plain(name)]
    folder.absent = tuple(name for name in plain if name not in present and name not in folder.links)
    folder.strays = tuple(name for name in present if name not in plain)
    return [name for name in plain if name in present]


def _is_plain(name: str) -> bool:
    return name not in ("", ".", "..") and Path(name).name == name and "\\" not in name and name_fault(name) is None
