"""Which key of a checkpoint was written where: a torch dispatch mode that follows tensors from file to parameter.

vLLM's loaders are many (one a parameter class, one a model, one for experts) and say nothing of what they drop. But all
end in a copy into a parameter's memory. So every tensor read from the checkpoint is followed through views, casts and
slices until it is copied, and the bytes it was copied to are noted with its key.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode


@dataclass(frozen=True)
class Write:
    """Bytes [start, stop) of ``parameter`` were written from ``key``; ``value`` for a tensor of one element."""

    key: str
    parameter: str
    start: int
    stop: int
    value: float | None


class LoadTrace(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes every copy of a followed tensor into one of ``parameters``, which are known by name."""

    def __init__(self, parameters: Mapping[str, torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._homes = {_identity(tensor): name for name, tensor in parameters.items()}
        # A weak reference keeps a storage's identity from being given to another, without keeping its memory.
        self._followed: dict[int, tuple[StorageWeakRef, str]] = {}
        self.writes: list[Write] = []
        self.last_key = ""

    def follow(self, weights: Iterator[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        """Pass ``weights`` on, and follow each from here."""
        for key, tensor in weights:
            self.last_key = key
            self._follow(tensor, key)
            yield key, tensor

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operator, then see what it did with a followed tensor."""
        out = func(*args, **(kwargs or {}))
        tensors = [argument for argument in _flat(args) if isinstance(argument, torch.Tensor)]
        key = next((found for tensor in tensors if (found := self._key_of(tensor)) is not None), None)
        if key is None:
            return out
        home = self._homes.get(_identity(tensors[0]))
        if home is not None and func._schema.is_mutable:  # noqa: SLF001 - torch has no other name for it
            self._note(key, home, tensors)
        else:
            for result in _flat(out if isinstance(out, (tuple, list)) else (out,)):
                if isinstance(result, torch.Tensor) and _identity(result) not in self._homes:
                    self._follow(result, key)
        return out

    def _note(self, key: str, home: str, tensors: list[torch.Tensor]) -> None:
        destination, source = tensors[0], tensors[-1]
        start = int(destination.storage_offset()) * destination.element_size()
        span = (
            sum((size - 1) * stride for size, stride in zip(destination.shape, destination.stride(), strict=True)) + 1
        )
        value = float(source.reshape(-1)[0]) if source.numel() == 1 and source.is_floating_point() else None
        self.writes.append(Write(key, home, start, start + span * destination.element_size(), value))

    def _key_of(self, tensor: torch.Tensor) -> str | None:
        entry = self._followed.get(_identity(tensor))
        return entry[1] if entry is not None and not entry[0].expired() else None  # type: ignore[no-untyped-call]

    def _follow(self, tensor: torch.Tensor, key: str) -> None:
        reference = StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
        self._followed[_identity(tensor)] = (reference, key)


def _identity(tensor: torch.Tensor) -> int:
    """The storage a tensor is a view of; the same for all its views."""
    return int(tensor.untyped_storage()._cdata)  # noqa: SLF001 - data_ptr() is 0 for every tensor of the meta device


def _flat(values: Any) -> Iterator[Any]:
    for value in values:
        if isinstance(value, (tuple, list)):
            yield from _flat(value)
        else:
            yield value
