"""How the hidden states of all batches get from one layer to the next.

They stay on the device, or wait off it and are brought there and back meanwhile. What is put belongs to the next layer,
what :meth:`Lane.batches` gives to the current one, until :meth:`Lane.advance`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, Self

import torch

from fourfold.engine.hidden import HiddenStates
from fourfold.engine.streams import Purpose, on_stream, stream_for

#: Batches on their way to the device at once, and results on their way back; each is held there too.
_COMING, _GOING = 2, 3


class Lane(Protocol):
    """Where a calibration's hidden states [B, T, H] are between two layers."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def batches(self, number: int) -> Iterator[tuple[int, torch.Tensor]]:
        """Every batch of the current layer, on the device; not of layer 0, which begins with embeddings."""

    def put(self, batch: int, states: torch.Tensor) -> None:
        """What the current layer made of a batch."""

    def finish(self) -> None:
        """Wait until everything that was put is kept."""

    def advance(self) -> None:
        """What was put is what comes next; the current layer's inputs go."""


class DeviceLane:
    """All states stay on the device; a batch's input is given up as it is read."""

    def __init__(self) -> None:
        self._states: dict[int, torch.Tensor] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._states.clear()

    def batches(self, number: int) -> Iterator[tuple[int, torch.Tensor]]:
        """See :class:`Lane`."""
        for batch in range(number):
            yield batch, self._states.pop(batch)

    def put(self, batch: int, states: torch.Tensor) -> None:
        """See :class:`Lane`."""
        self._states[batch] = states

    def finish(self) -> None:
        """Nothing is under way."""

    def advance(self) -> None:
        """Inputs are gone already."""


class StreamLane:
    """States wait in host memory or on disk (:class:`HiddenStates`): two threads bring batches to the device ahead of
    the computation, and results back behind it.
    """

    def __init__(self, states: HiddenStates, device: torch.device) -> None:
        self._states, self._device = states, device
        self._reader, self._writer = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self._writing = deque[Future[None]]()
        purposes = (Purpose.TO_DEVICE, Purpose.TO_HOST) if device.type == "cuda" else ()
        self._streams = [stream_for(purpose, device) for purpose in purposes]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.shutdown(cancel_futures=True)
        self._writer.shutdown(cancel_futures=True)
        self._states.close()

    def batches(self, number: int) -> Iterator[tuple[int, torch.Tensor]]:
        """See :class:`Lane`."""
        coming = deque(self._reader.submit(self._fetch, batch) for batch in range(min(_COMING, number)))
        for batch in range(number):
            states = coming.popleft().result()
            if batch + _COMING < number:
                coming.append(self._reader.submit(self._fetch, batch + _COMING))
            if self._streams:
                states.record_stream(torch.cuda.current_stream(self._device))
            yield batch, states

    @torch.inference_mode()
    def _fetch(self, batch: int) -> torch.Tensor:
        # As states that stay on the device are made: torch.compile tells the two kinds of tensor apart, and a layer
        # compiled for the one would run uncompiled, and a last bit apart, on the other.
        states = self._states.read(batch)
        if not self._streams:
            return states
        with on_stream(self._streams[0]):
            moved = states.to(self._device)
        self._streams[0].synchronize()
        return moved

    def put(self, batch: int, states: torch.Tensor) -> None:
        """It is on its way when this returns."""
        # Pages are locked while a model is read and compiled; not while kernels are recorded, which begins after this.
        self._states.wait_for_memory()
        ready = None
        if self._streams:
            ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
            ready.record(torch.cuda.current_stream(self._device))
        while len(self._writing) >= _GOING:
            self._writing.popleft().result()
        self._writing.append(self._writer.submit(self._store, batch, states, ready))

    def _store(self, batch: int, states: torch.Tensor, ready: torch.cuda.Event | None) -> None:
        if ready is not None:
            ready.synchronize()
            with on_stream(self._streams[1]):
                self._states.write(batch, states)
            return
        self._states.write(batch, states)

    def finish(self) -> None:
        """Wait until every result is stored, and forced to disk; the first error among them is raised."""
        while self._writing:
            self._writing.popleft().result()
        self._states.sync()

    def advance(self) -> None:
        """See :class:`Lane`."""
        self._states.advance()
