"""A quantized folder of any layout as an artifact's tensors: canonical names, scales that multiply on decode.

What :mod:`fourfold.compare` and :mod:`fourfold.convert` read. Where a layout stores divisors, the exact divisor of
every scale stands beside it as in an artifact (``M.global_encode_scale``), so nothing is lost by reading.

Shape letters: O out features, K in features, P = K/2 bytes, G = K/16 blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from fourfold.checkpoint.index import TensorEntry, TensorFolder
from fourfold.checkpoint.layouts import CANONICAL, ENCODE_SUFFIXES, detect_layout
from fourfold.errors import CheckpointError

if TYPE_CHECKING:
    import torch

_BYTES_PER_BLOCK = 8
_SCALARS = ((), (1,))
_PARTS = (*CANONICAL.suffixes, *ENCODE_SUFFIXES)
#: Scale -> the exact divisor beside it.
_DIVISORS = dict(zip((CANONICAL.global_scale, CANONICAL.input_global_scale), ENCODE_SUFFIXES, strict=True))


class CanonicalFolder(TensorFolder):
    """Reads like the :class:`TensorFolder` of an artifact, whatever the layout on disk.

    ``modules`` are the quantized ones, in file order. Raises :class:`CheckpointError` for a folder that is not
    quantized to NVFP4, mixes layouts, or holds a module of which a part is missing or has a wrong type or shape.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.layout = detect_layout(self)
        entries = list(super().__iter__())
        suffix = f".{self.layout.global_scale}"
        self.modules = tuple(e.name.removesuffix(suffix) for e in entries if e.name.endswith(suffix))
        self._module_set = frozenset(self.modules)
        for module in self.modules:
            self._check_module(module)
        renamed = self._names_on_disk()
        self._on_disk: dict[str, TensorEntry] = {}
        self.tensors = {}
        for entry in entries:
            for name in renamed.get(entry.name, (entry.name,)):
                if name in self._on_disk:
                    raise CheckpointError(f"{self.path}: {entry.name} and {self._on_disk[name].name} are both {name}")
                shape = () if entry.name in renamed and entry.shape == (1,) else entry.shape
                self._on_disk[name] = entry
                self.tensors[name] = TensorEntry(name, entry.dtype, shape, entry.file)

    def _names_on_disk(self) -> dict[str, tuple[str, ...]]:
        """Stored name -> canonical names, for every tensor that has another name or two."""
        names: dict[str, tuple[str, ...]] = {}
        for module in self.modules:
            for canonical in CANONICAL.suffixes:
                found = [f"{module}.{canonical}"]
                if self.layout.reciprocal and canonical in _DIVISORS:
                    found.append(f"{module}.{_DIVISORS[canonical]}")
                names[f"{module}.{getattr(self.layout, canonical)}"] = tuple(found)
        for entry in self.tensors.values():
            for canonical, stored in self.layout.kv_scales.items():
                if entry.name.endswith(f".{stored}"):
                    names[entry.name] = (f"{entry.name.removesuffix(stored)}{canonical}",)
        return names

    def _check_module(self, module: str) -> None:
        layout = self.layout
        packed = self.entry(f"{module}.{layout.packed_weight}")
        rows, width = packed.shape if len(packed.shape) == 2 else (0, 0)
        if packed.dtype != "U8" or not rows or not width or width % _BYTES_PER_BLOCK:
            raise CheckpointError(
                f"{self.path}: {packed.name} is {packed.dtype} {list(packed.shape)}; "
                "a packed NVFP4 weight is U8 [O, K/2] with K a multiple of 16"
            )
        block = self.entry(f"{module}.{layout.block_scale}")
        if block.dtype != "F8_E4M3" or block.shape != (rows, width // _BYTES_PER_BLOCK):
            raise CheckpointError(
                f"{self.path}: {block.name} is {block.dtype} {list(block.shape)}; {packed.name} "
                f"{list(packed.shape)} needs F8_E4M3 [{rows}, {width // _BYTES_PER_BLOCK}]"
            )
        for suffix in (layout.global_scale, layout.input_global_scale):
            entry = self.tensors.get(f"{module}.{suffix}")
            if entry is not None and (entry.dtype != "F32" or entry.shape not in _SCALARS):
                raise CheckpointError(
                    f"{self.path}: {entry.name} is {entry.dtype} {list(entry.shape)}; one F32 number expected"
                )

    def __iter__(self) -> Iterator[TensorEntry]:
        """Entries in the order of the files on disk, then by name there."""
        return iter(sorted(self.tensors.values(), key=lambda e: (e.file, self._on_disk[e.name].name, e.name)))

    def stored_name(self, name: str) -> str:
        """Name on disk of a canonical tensor."""
        return self._on_disk[self.entry(name).name].name

    def is_part(self, name: str) -> bool:
        """Whether a tensor belongs to a quantized module; every other one is kept."""
        module, _, suffix = name.rpartition(".")
        return module in self._module_set and suffix in _PARTS

    def read(self, name: str, slices: tuple[int | slice, ...] | None = None) -> torch.Tensor:
        """The canonical tensor, or the given part of it; only that part is read."""
        entry = self._on_disk[self.entry(name).name]
        handle = self._handle(entry.file)
        if slices is not None:
            return handle.get_slice(entry.name)[slices]  # type: ignore[no-any-return]
        tensor: torch.Tensor = handle.get_tensor(entry.name)
        if self.entry(name).shape == () and tensor.ndim:
            tensor = tensor.reshape(())
        suffix = name.rpartition(".")[2]
        if self.layout.reciprocal and suffix in _DIVISORS and self.is_part(name):
            return self.layout.from_stored(tensor)
        return tensor
