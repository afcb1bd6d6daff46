"""What to say when memory ends: how much is wanted, and what would fit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from fourfold.errors import DeviceError

if TYPE_CHECKING:
    from fourfold.engine.model import LayerwiseModel

_GIB = 2**30
#: What torch says where the CPU has no memory left; it has no type of its own.
_CPU_ALLOCATOR = "DefaultCPUAllocator"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it is memory that was lacking, on any device."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and _CPU_ALLOCATOR in str(error)
    )


@contextmanager
def explain_out_of_memory(model: LayerwiseModel, *, streamed: bool) -> Iterator[None]:
    """Turn the end of memory inside the block into a :class:`DeviceError` that says what would fit."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise _explained(model, streamed=streamed) from error


def _explained(model: LayerwiseModel, *, streamed: bool) -> DeviceError:
    whole, layer = (size / _GIB for size in model.weight_bytes())
    if streamed:
        return DeviceError(
            f"device {model.device} ran out of memory with one layer of {layer:.2f} GiB on it; lower --batch-size"
        )
    return DeviceError(
        f"device {model.device} ran out of memory: the model's layers take {whole:.2f} GiB there, beside a batch; "
        f"with --stream one layer at a time does, {layer:.2f} GiB"
    )
