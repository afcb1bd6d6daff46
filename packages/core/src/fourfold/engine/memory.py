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
#: The one that is calibrated, the next, which is read meanwhile, and the last, which is packed.
_LAYERS_AT_ONCE = 3
#: What torch says where the CPU has no memory left; it has no type of its own.
_CPU_ALLOCATOR = "DefaultCPUAllocator"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it is memory that was lacking, on any device."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and _CPU_ALLOCATOR in str(error)
    )


@contextmanager
def explain_out_of_memory(model: LayerwiseModel, states_bytes: int) -> Iterator[None]:
    """Turn the end of memory inside the block into a :class:`DeviceError` that says what would fit.

    ``states_bytes`` are those of hidden states that stay on the device.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        layers, states = _LAYERS_AT_ONCE * model.largest_layer_bytes() / _GIB, states_bytes / _GIB
        held = f"up to {_LAYERS_AT_ONCE} layers, {layers:.2f} GiB"
        if states_bytes:
            advice = (
                f"all hidden states, {states:.2f} GiB, are there beside {held}; with --stream they wait in host memory"
            )
        else:
            advice = f"it held {held}, and a batch; lower --batch-size"
        raise DeviceError(f"device {model.device} ran out of memory: {advice}") from error
