"""Calibration: all batches through all layers, in one of two orders.

*Resident*: every layer stays on the device, a batch goes through all of them. *Streamed*: one layer at a time is on the
device, all batches go through it, their hidden states wait in host memory or on disk, and the next layer is read
meanwhile. Both call the same modules with the same arguments, so they see the same to the last bit.

Shape letters: B rows, T tokens, H hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from fourfold.engine.hidden import HiddenStates, Lane
from fourfold.engine.memory import explain_out_of_memory
from fourfold.engine.moments import MomentKind
from fourfold.engine.observations import LayerObservations, LayerObserver
from fourfold.errors import QuantizationError

if TYPE_CHECKING:
    from fourfold.engine.model import LayerwiseModel
    from fourfold.models.gemma4 import Gemma4Moe, LinearModule
    from fourfold.progress import Progress

Batch = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class ObservedLayer:
    """A layer whose calibration is done; ``read`` gives the weights of its linears, wherever they are."""

    index: int
    observations: LayerObservations
    read: Callable[[LinearModule], torch.Tensor]


class Calibration:
    """Runs ``batches`` (arguments of the model, ``input_ids`` and ``attention_mask`` among them) layer by layer."""

    def __init__(
        self,
        model: LayerwiseModel,
        gemma: Gemma4Moe,
        batches: Sequence[Batch],
        progress: Progress,
        moments: MomentKind | None = None,
    ) -> None:
        self._model, self._gemma, self._batches = model, gemma, batches
        self._progress, self._moments = progress, moments

    def resident(self) -> Iterator[ObservedLayer]:
        """Every layer, after all batches went through the model. Raises :class:`DeviceError` where it does not fit."""
        with torch.inference_mode(), explain_out_of_memory(self._model, streamed=False):
            observers = self._run_resident()
        for index, observer in enumerate(observers):
            yield ObservedLayer(index, observer.collected(), self._reader_of(index))

    def _run_resident(self) -> list[LayerObserver]:
        self._progress.begin("load layers", total=len(self._model.layers), unit="layer")
        observers = []
        with ExitStack() as stack, ThreadPoolExecutor(1) as pool:
            coming = pool.submit(self._model.read_layer, 0)
            for index in range(len(self._model.layers)):
                tensors = coming.result()
                if index + 1 < len(self._model.layers):
                    coming = pool.submit(self._model.read_layer, index + 1)
                observers.append(self._observer(index))
                stack.enter_context(observers[-1].watching(self._model.load_layer(index, tensors)))
                self._progress.advance()
            self._progress.begin("calibrate", total=len(self._batches), unit="batch")
            for number, batch in enumerate(self._batches):
                states = self._model.embed(batch)
                finite = []
                for index, observer in enumerate(observers):
                    observer.keep_T = _kept(batch, self._model.device)
                    states = self._call(index, states, batch)
                    finite.append(_is_finite(states))
                _require_finite(torch.stack(finite), lambda index, number=number: (index, number))  # type: ignore[misc]
                self._progress.advance()
        return observers

    def streamed(self, states: HiddenStates, first_layer: int = 0) -> Iterator[ObservedLayer]:
        """Every layer from ``first_layer`` on, as soon as all batches went through it.

        ``states`` are those that enter ``first_layer``; filled here for layer 0. They have advanced when a layer's
        consumer asks for the next one. Raises as :meth:`resident`.
        """
        with ThreadPoolExecutor(1) as pool, Lane(states, self._model.device) as lane:
            coming = pool.submit(self._model.read_layer, first_layer)
            for index in range(first_layer, len(self._model.layers)):
                with torch.inference_mode(), explain_out_of_memory(self._model, streamed=True):
                    if index == 0:
                        self._embed_all(states)
                    layer = self._model.load_layer(index, coming.result())
                    if index + 1 < len(self._model.layers):
                        coming = pool.submit(self._model.read_layer, index + 1)
                    observer = self._run_layer(index, layer, lane)
                    states.sync()
                yield ObservedLayer(index, observer.collected(), self._reader_of(index))
                states.advance()
                self._model.unload_layer(index)

    def expect(self, states: HiddenStates) -> None:
        """Tell ``states`` what an interrupted run left on disk."""
        width = self._model.hidden_size
        for number, batch in enumerate(self._batches):
            states.expect(number, (*batch["input_ids"].shape, width), torch.bfloat16)

    def _embed_all(self, states: HiddenStates) -> None:
        self._progress.begin("embed", total=len(self._batches), unit="batch")
        for number, batch in enumerate(self._batches):
            states.write(number, self._model.embed(batch))
            self._progress.advance()
        states.advance()

    def _run_layer(self, index: int, layer: nn.Module, lane: Lane) -> LayerObserver:
        observer = self._observer(index)
        self._progress.begin(f"calibrate layer {index}", total=len(self._batches), unit="batch")
        finite = []
        with observer.watching(layer):
            for number, hidden in lane.batches(len(self._batches)):
                batch = self._batches[number]
                observer.keep_T = _kept(batch, self._model.device)
                result = self._call(index, hidden, batch)
                finite.append(_is_finite(result))
                if index + 1 < len(self._model.layers):
                    lane.put(number, result)
                self._progress.advance()
            lane.finish()
        _require_finite(torch.stack(finite), lambda number: (index, number))
        return observer

    def _call(self, index: int, states: torch.Tensor, batch: Batch) -> torch.Tensor:
        arguments = self._model.layer_arguments(batch, index)
        return self._model.layers[index](states, None, **arguments)  # type: ignore[no-any-return]

    def _observer(self, index: int) -> LayerObserver:
        marker = f"layers.{index}."
        linears = {
            str(linear.name).split(marker, 1)[1]: linear
            for linear in self._gemma.linears.values()
            if linear.layer == index and linear.expert is None
        }
        return LayerObserver(linears, self._gemma.num_experts, self._model.device, self._moments)

    def _reader_of(self, index: int) -> Callable[[LinearModule], torch.Tensor]:
        marker = f"layers.{index}."

        def read(linear: LinearModule) -> torch.Tensor:
            name = linear.tensor.split(marker, 1)[1]
            parameter: torch.Tensor = self._model.layers[index].get_parameter(name).detach()
            return parameter[linear.slices] if linear.slices else parameter

        return read


def _kept(batch: Batch, device: torch.device) -> torch.Tensor | None:
    """Which positions are real, bool [B x T]; None for all."""
    mask = batch["attention_mask"]
    return None if bool(mask.all()) else mask.reshape(-1).bool().to(device)


def _is_finite(states: torch.Tensor) -> torch.Tensor:
    """Bool []; left on the device, so that nothing waits for it."""
    low, high = torch.aminmax(states)
    return low.isfinite() & high.isfinite()


def _require_finite(finite: torch.Tensor, place: Callable[[int], tuple[int, int]]) -> None:
    if not bool(finite.all()):
        layer, batch = place(int((~finite).int().argmax()))
        raise QuantizationError(
            f"layer {layer}, batch {batch}: its output holds NaN or infinity; look at that layer's weights in the "
            "source, or at the batch's tokens"
        )
