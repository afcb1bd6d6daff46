"""Hidden states of all batches between two layers: in host memory as far as it goes, then on disk.

What is read belongs to the current layer, what is written to the next, until :meth:`HiddenStates.advance`. On disk the
two stand in folders of their own, so a run that ends in the middle of a layer finds that layer's inputs whole.
"""

from __future__ import annotations

import os
import shutil
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from math import ceil
from pathlib import Path

import torch

from fourfold.checkpoint.atomic import is_full_disk
from fourfold.checkpoint.dtypes import host_bytes
from fourfold.errors import CheckpointError, DeviceError, OutputError, first_line

_BEGIN_ANEW = "remove the folder of the run's work to begin anew"
#: Page-locked memory is given out in powers of two; states are cut out of pieces of this size.
_PINNED_PIECE = 2**30


class HostMemory:
    """At most ``limit_bytes`` of host memory."""

    def __init__(self, limit_bytes: int) -> None:
        self._room = limit_bytes

    def capacity(self, nbytes: int) -> int:
        """How many times :meth:`take` gives as much."""
        return self._room // nbytes

    def reserve(self, nbytes: int, times: int) -> None:
        """Make ready, in the background, what :meth:`take` will be asked for; no more than there is room for."""

    def wait(self) -> None:
        """Until all that was reserved is ready."""

    def close(self) -> None:
        """Make nothing more ready."""

    def take(self, nbytes: int) -> torch.Tensor | None:
        """uint8 [``nbytes``], or None when there is no room for them."""
        if nbytes > self._room:
            return None
        self._room -= nbytes
        return torch.empty(nbytes, dtype=torch.uint8)


class PinnedMemory(HostMemory):
    """The same, page-locked."""

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(limit_bytes)
        self._piece = torch.empty(0, dtype=torch.uint8)
        self._reserved = deque[Future[torch.Tensor]]()
        self._awaited = list[Future[torch.Tensor]]()
        # One thread: the driver locks pages for one at a time.
        self._locking = ThreadPoolExecutor(1)

    def capacity(self, nbytes: int) -> int:
        """See :class:`HostMemory`."""
        size = _piece_size(nbytes)
        return self._room // size * (size // nbytes)

    def take(self, nbytes: int) -> torch.Tensor | None:
        """See :class:`HostMemory`."""
        if nbytes > len(self._piece):
            size = _piece_size(nbytes)
            if size > self._room:
                return None
            self._piece = self._reserved.popleft().result() if self._reserved else _pinned(size)
            self._room -= len(self._piece)
        taken, self._piece = self._piece[:nbytes], self._piece[nbytes:]
        return taken

    def reserve(self, nbytes: int, times: int) -> None:
        """See :class:`HostMemory`."""
        size = _piece_size(nbytes)
        number = min(ceil(times / (size // nbytes)), self._room // size)
        self._awaited = [self._locking.submit(_pinned, size) for _ in range(number)]
        self._reserved.extend(self._awaited)

    def wait(self) -> None:
        """See :class:`HostMemory`."""
        while self._awaited:
            self._awaited.pop().result()

    def close(self) -> None:
        """See :class:`HostMemory`."""
        self._locking.shutdown(wait=False, cancel_futures=True)


def host_memory(limit_bytes: int, *, pinned: bool) -> HostMemory:
    """Of either kind."""
    return PinnedMemory(limit_bytes) if pinned else HostMemory(limit_bytes)


def _pinned(nbytes: int) -> torch.Tensor:
    try:
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)
    except RuntimeError as error:
        if "out of memory" not in str(error):
            raise
        raise DeviceError(
            f"{nbytes / 2**30:.2f} GiB of host memory for hidden states cannot be page-locked "
            f"({first_line(error)}); give them less with --option host_memory_gib=GIB"
        ) from error


def _piece_size(nbytes: int) -> int:
    return max(_PINNED_PIECE, 1 << (nbytes - 1).bit_length())


class HiddenStates:
    """``folder`` takes what ``memory_bytes`` do not hold; with 0, everything. ``layer`` is the first; layer 0 reads
    nothing, since it begins with embeddings.
    """

    def __init__(
        self, folder: Path, memory_bytes: int, layer: int = 0, *, pinned: bool = False, durable: bool = False
    ) -> None:
        """``pinned`` memory takes states from a GPU several times as fast as other memory, which is copied twice.

        ``durable`` says that another run may go on from what is on disk.
        """
        self._folder, self._layer, self._durable = folder, layer, durable
        self._staging: torch.Tensor | None = None
        self._new_memory = partial(host_memory, memory_bytes, pinned=pinned)
        self._host = self._new_memory()
        self._memory: dict[int, torch.Tensor] = {}
        self._shapes: dict[int, tuple[tuple[int, ...], torch.dtype]] = {}
        self._refused: OutputError | None = None

    def _path(self, layer: int, batch: int) -> Path:
        return self._folder / f"layer-{layer:03d}" / f"{batch:06d}.bin"

    def begin_anew(self, nbytes: int = 0, batches: int = 0) -> None:
        """Forget everything; what comes next is layer 0's, of ``batches`` that have ``nbytes`` each at the most."""
        self._layer = 0
        self._memory, self._shapes = {}, {}
        self._host = self._new_memory()
        if batches:
            self._host.reserve(nbytes, batches)

    def remove_others(self) -> None:
        """What a run that ended in the middle of a layer left on disk, but for what is to be read."""
        for folder in self._folder.glob("layer-*"):
            if folder != self._path(self._layer, 0).parent:
                shutil.rmtree(folder)

    def close(self) -> None:
        """No more memory is made ready, as when a run has failed."""
        self._host.close()

    def wait_for_memory(self) -> None:
        """Until what was asked for is there."""
        self._host.wait()

    def expect(self, batch: int, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        """Say what stands on disk already, in a run that goes on."""
        self._shapes[batch] = shape, dtype

    def read(self, batch: int) -> torch.Tensor:
        """A batch's states, on the CPU; :class:`CheckpointError` for a file that is missing, or holds them in part."""
        if batch in self._memory:
            return self._memory[batch]
        shape, dtype = self._shapes[batch]
        states = torch.empty(shape, dtype=dtype)
        path = self._path(self._layer, batch)
        try:
            done = _fill(host_bytes(states), path)
        except OSError as error:
            raise CheckpointError(f"{path}: hidden states cannot be read ({error.strerror}); {_BEGIN_ANEW}") from None
        if done < states.nbytes:
            raise CheckpointError(f"{path}: holds {done} of {states.nbytes} bytes of hidden states; {_BEGIN_ANEW}")
        return states

    @torch.inference_mode()
    def write(self, batch: int, states: torch.Tensor) -> None:
        """A batch's states [B, T, H] after the current layer, from any device.

        Raises :class:`OutputError` for a full disk; what the layer wrote is removed, what it reads stays.
        """
        self._shapes[batch] = tuple(states.shape), states.dtype
        if batch in self._memory:
            # What stood there was this batch's input, and has been read.
            self._memory[batch].copy_(states)
        elif (memory := self._host.take(states.nbytes)) is not None:
            self._memory[batch] = memory.view(states.dtype).view(states.shape).copy_(states)
        else:
            self._spill(batch, self._staged(states))

    def _staged(self, states: torch.Tensor) -> torch.Tensor:
        """``states`` in host memory, in a buffer that is used again."""
        if states.device.type == "cpu":
            return states.contiguous()
        if self._staging is None or self._staging.shape != states.shape:
            self._staging = torch.empty(states.shape, dtype=states.dtype, pin_memory=True)
        return self._staging.copy_(states)

    def _spill(self, batch: int, states: torch.Tensor) -> None:
        if self._refused is not None:
            # Others of the layer were on their way when its folder was removed.
            raise self._refused
        path = self._path(self._layer + 1, batch)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb", buffering=0) as file:
                view, done = host_bytes(states), 0
                while done < len(view):
                    done += file.write(view[done:])
        except OSError as error:
            shutil.rmtree(path.parent, ignore_errors=True)
            if not is_full_disk(error):
                raise
            self._refused = OutputError(
                f"{self._folder}: the disk for hidden states is full in layer {self._layer}, batch {batch}; free some "
                "of it, or name a folder elsewhere with --option work=DIR; a run with that option goes on at this layer"
            )
            raise self._refused from None

    def sync(self) -> None:
        """Force what was written to disk, where somebody may go on from it."""
        for path in sorted(self._path(self._layer + 1, 0).parent.glob("*.bin")) if self._durable else ():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def advance(self) -> None:
        """What was written is what will be read; the layer's inputs go."""
        shutil.rmtree(self._path(self._layer, 0).parent, ignore_errors=True)
        self._layer += 1


def _fill(view: memoryview, path: Path) -> int:
    """Fill ``view`` from the file at ``path``; how many bytes there were for it."""
    done = 0
    with path.open("rb", buffering=0) as file:
        while done < len(view) and (got := file.readinto(view[done:])):
            done += got
    return done
