"""What rows are called with beside their tokens (pixels, patch positions, kinds of tokens): one file a row.

``media/000000.safetensors`` holds a row's tensors by the model's own argument names, as the processor gave them with
one row: the first dimension counts rows or pictures, so those of several rows are put one after the other. They are
read when asked for, and a file is compared with its sha256 the first time: a set may be larger than memory.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fourfold.errors import CalibrationError

if TYPE_CHECKING:
    import torch

MEDIA_FOLDER = "media"


class RowMedia:
    """The files of all rows. ``sha256``: uint8 [N, 32], a digest each; ``keep`` is what holds ``folder`` in being."""

    def __init__(self, folder: Path, sha256: torch.Tensor, keep: object = None) -> None:
        self.folder, self.sha256 = folder, sha256
        self._keep = keep
        self._names: dict[int, tuple[str, ...]] = {}

    def names(self, row: int) -> tuple[str, ...]:
        """Names of a row's tensors.

        Raises :class:`CalibrationError` for a file that is missing or is not the one that was hashed.
        """
        from safetensors import safe_open

        if row not in self._names:
            path = _path(self.folder, row)
            try:
                digest = hashlib.sha256(path.read_bytes()).digest()
            except OSError as error:
                raise CalibrationError(f"{path}: cannot be read ({error.strerror})") from None
            if digest != bytes(self.sha256[row].tolist()):
                raise CalibrationError(f"{path}: not the file that its token set was written with")
            with safe_open(path, framework="pt") as file:
                self._names[row] = tuple(file.keys())
        return self._names[row]

    def read(self, rows: Sequence[int], name: str) -> torch.Tensor:
        """One argument of those of ``rows`` that have it, in their order; raises as :meth:`names`."""
        import torch
        from safetensors import safe_open

        found = []
        for row in rows:
            if name in self.names(row):
                with safe_open(_path(self.folder, row), framework="pt") as file:
                    found.append(file.get_tensor(name))
        return torch.cat(found)

    def copy_to(self, folder: Path) -> None:
        """All files into ``folder``, by link where the file system allows it."""
        folder.mkdir(parents=True, exist_ok=True)
        for row in range(len(self.sha256)):
            source, target = _path(self.folder, row), _path(folder, row)
            if target.exists() and target.samefile(source):
                continue
            target.unlink(missing_ok=True)
            try:
                os.link(source, target)
            except OSError:
                shutil.copyfile(source, target)


def write_row(folder: Path, row: int, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Write a row's file and return its digest, uint8 [32]."""
    import torch
    from safetensors.torch import save

    # Not save_file: what the system refuses (a full disk) would be no OSError there.
    data = save({name: tensor.contiguous() for name, tensor in tensors.items()})
    _path(folder, row).write_bytes(data)
    return torch.tensor(list(hashlib.sha256(data).digest()), dtype=torch.uint8)


class RowInputs(Mapping[str, "torch.Tensor"]):
    """What the model is called with for some rows of equal length: tokens at hand, media read when asked for."""

    def __init__(self, tokens: Mapping[str, torch.Tensor], media: RowMedia, rows: Sequence[int]) -> None:
        self._tokens, self._media, self._rows = tokens, media, rows

    def __getitem__(self, name: str) -> torch.Tensor:
        if name in self._tokens:
            return self._tokens[name]
        if name not in self:
            raise KeyError(name)
        return self._media.read(self._rows, name)

    def __contains__(self, name: object) -> bool:
        return name in set(self)  # a mapping's own way would read the tensor

    def __iter__(self) -> Iterator[str]:
        yield from self._tokens
        yield from dict.fromkeys(name for row in self._rows for name in self._media.names(row))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _path(folder: Path, row: int) -> Path:
    return folder / f"{row:06d}.safetensors"
