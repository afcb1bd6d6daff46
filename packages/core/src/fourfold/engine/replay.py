"""A layer's kernels, recorded once and started again for every batch.

Kernels that Python starts one by one come late to the GPU while other threads read, pack and write layers: 13.5 ms a
batch and layer at the 26B's size, 11.5 recorded (docs/engine.md). A recording (a CUDA graph) is started by one call,
and is the same kernels on the same numbers, so results are the same to the bit.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from fourfold.engine.streams import Purpose, on_stream, stream_for

#: States [B, T, H] to states, and whether these are finite (bool []).
Step = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


class Replay:
    """``step`` on states of one shape: as it is the first time, recorded the second.

    ``step`` may keep what it saw, if it does so in memory of its own that stays where it is.
    """

    def __init__(self, step: Step, device: torch.device) -> None:
        self._step, self._device = step, device
        self._input: torch.Tensor | None = None
        self._output: tuple[torch.Tensor, torch.Tensor] | None = None
        self._graph = torch.cuda.CUDAGraph()
        self._warm = False

    def __call__(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What ``step`` gives."""
        if not self._warm:
            # Compiles and loads what a recording may not.
            self._warm = True
            return self._step(states)
        if self._output is None:
            self._output = self._record(states)
        assert self._input is not None  # made by recording
        self._input.copy_(states)
        self._graph.replay()
        result, finite = self._output
        return result.clone(), finite.clone()

    def _record(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self._input = states.clone()
        # The recording has memory of its own beside the cache that the first time has filled.
        torch.cuda.empty_cache()
        current, recording = torch.cuda.current_stream(self._device), stream_for(Purpose.RECORD, self._device)
        recording.wait_stream(current)
        with on_stream(recording):
            # Other threads go on allocating meanwhile.
            self._graph.capture_begin(capture_error_mode="thread_local")
            try:
                output = self._step(self._input)
            finally:
                self._graph.capture_end()
        current.wait_stream(recording)
        return output
