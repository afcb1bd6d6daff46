"""Writing tensors in bounded memory: shards of a stated size, each written whole, the index last.

Nothing here is visible under its final name before it is complete: shards are numbered when their count is
known, and the caller renames the folder (:func:`fourfold.checkpoint.atomic.atomic_folder`).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from fourfold.checkpoint.stored import InMemory, Stored, nbytes, write_file
from fourfold.errors import CheckpointError

if TYPE_CHECKING:
    import torch

#: Resident memory while writing stays near twice this.
DEFAULT_SHARD_BYTES = 512 * 2**20


class ShardWriter:
    """Collects tensors and writes them as ``model-0000N-of-0000M.safetensors`` with their index.

    Tensors are written in the order given, so equal input gives equal bytes. A single shard is named
    ``model.safetensors`` and has no index.
    """

    def __init__(
        self,
        folder: Path,
        *,
        max_shard_bytes: int = DEFAULT_SHARD_BYTES,
        digest: Callable[[Path], str] | None = None,
    ) -> None:
        """``digest`` is taken of each shard beside the writing of the next, while the system still has it in memory."""
        self._folder = folder
        self._digest, self._digests = digest, list[Future[str]]()
        self._hashing = ThreadPoolExecutor(1)
        self._max_shard_bytes = max_shard_bytes
        self._pending: dict[str, Stored] = {}
        self._pending_bytes = 0
        self._shards: list[tuple[Path, tuple[str, ...]]] = []
        self._names: set[str] = set()
        self.total_bytes = 0
        #: By file name, once finished, where digests are taken.
        self.digests: dict[str, str] = {}

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Queue one tensor; :class:`CheckpointError` when the name was given before."""
        # A view would keep its whole storage alive until the shard is written.
        self.add_stored(name, InMemory(tensor.detach().cpu().contiguous().clone()))

    def add_stored(self, name: str, stored: Stored) -> None:
        """Queue a tensor that is read when its shard is written; it may be larger than memory."""
        if name in self._names:
            raise CheckpointError(f"tensor {name} is written twice")
        size = nbytes(stored)
        if self._pending and self._pending_bytes + size > self._max_shard_bytes:
            self._flush()
        self._names.add(name)
        self._pending[name] = stored
        self._pending_bytes += size
        self.total_bytes += size

    def _flush(self) -> None:
        path = self._folder / f"shard-{len(self._shards) + 1:05d}.partial"
        write_file(path, self._pending)
        self._shards.append((path, tuple(self._pending)))
        if self._digest is not None:
            self._digests.append(self._hashing.submit(self._digest, path))
        self._pending, self._pending_bytes = {}, 0

    def finish(self) -> tuple[str, ...]:
        """Write what is left and the index; returns the shards' file names."""
        if self._pending or not self._shards:
            self._flush()
        # Before the shards get their names: they are hashed under those that they have.
        digests = [digest.result() for digest in self._digests]
        self._hashing.shutdown()
        files = self._name_shards()
        if self._digest is not None:
            self.digests = dict(zip(files, digests, strict=True))
        return files

    def _name_shards(self) -> tuple[str, ...]:
        """Give every shard its final name, and write the index where there are several."""
        if len(self._shards) == 1:
            self._shards[0][0].rename(self._folder / "model.safetensors")
            return ("model.safetensors",)
        weight_map: dict[str, str] = {}
        files = []
        for number, (path, names) in enumerate(self._shards, start=1):
            file = f"model-{number:05d}-of-{len(self._shards):05d}.safetensors"
            path.rename(self._folder / file)
            files.append(file)
            weight_map.update(dict.fromkeys(names, file))
        index = {"metadata": {"total_size": self.total_bytes}, "weight_map": dict(sorted(weight_map.items()))}
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (self._folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")
        return tuple(files)
