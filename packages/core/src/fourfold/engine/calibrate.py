"""Calibration: all batches through one layer, then all through the next.

The next layer is read meanwhile, and whoever takes the last one's observations may pack its weights. Hidden states of
all batches wait in a :class:`fourfold.engine.lanes.Lane`, on the device or off it; either way the same modules are
called with the same arguments, so all see the same to the last bit.

Shape letters: B rows, T tokens, H hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING

import torch
from torch import nn

from fourfold.engine import experts
from fourfold.engine.lanes import DeviceLane
from fourfold.engine.memory import explain_out_of_memory
from fourfold.engine.model import PLAIN
from fourfold.engine.moments import MomentKind
from fourfold.engine.observations import LayerObservations, LayerObserver
from fourfold.engine.replay import Replay
from fourfold.errors import QuantizationError

if TYPE_CHECKING:
    from fourfold.engine.hidden import HiddenStates
    from fourfold.engine.lanes import Lane
    from fourfold.engine.model import LayerwiseModel
    from fourfold.models.gemma4 import Gemma4Moe, LinearModule
    from fourfold.progress import Progress

Batch = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class ObservedLayer:
    """A layer whose calibration is done; ``read`` gives the weights of its linears, wherever they are.

    It holds them, whatever the model has unloaded meanwhile.
    """

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
        numbers: Sequence[int] | None = None,
    ) -> None:
        """``numbers`` are those by which an error calls ``batches``, where these are a part of all."""
        self._model, self._gemma, self._batches = model, gemma, batches
        self._progress, self._moments = progress, moments
        self._numbers = range(len(batches)) if numbers is None else numbers

    def layers(self, lane: Lane | None = None, first_layer: int = 0) -> Iterator[ObservedLayer]:
        """Every layer from ``first_layer`` on, as soon as all batches went through it.

        ``lane`` holds the states that enter ``first_layer``, unless that is 0; without one they stay on the device.
        They have advanced when a layer's consumer asks for the next one.
        Raises :class:`DeviceError` where something does not fit.
        """
        lane = DeviceLane() if lane is None else lane
        states_bytes = self._states_bytes() if isinstance(lane, DeviceLane) else 0
        with ThreadPoolExecutor(1) as pool, lane:
            coming = pool.submit(self._model.fetch_layer, first_layer)
            for index in range(first_layer, len(self._model.layers)):
                with torch.inference_mode(), explain_out_of_memory(self._model, states_bytes):
                    layer = self._model.load_layer(index, coming.result())
                    if index + 1 < len(self._model.layers):
                        coming = pool.submit(self._model.fetch_layer, index + 1)
                    observer = self._run_layer(index, layer, lane)
                # What is rounded is the stored weight, whatever was computed with.
                read = self._model.stored if self._model.stores_otherwise(index) else _reader_of(layer, index)
                yield ObservedLayer(index, observer.collected(), read)
                lane.advance()
                self._model.unload_layer(index)

    def _states_bytes(self) -> int:
        """Of all batches' hidden states, in BF16."""
        tokens = sum(batch["input_ids"].numel() for batch in self._batches)
        return tokens * self._model.hidden_size * torch.bfloat16.itemsize

    def expect(self, states: HiddenStates) -> None:
        """Tell ``states`` what an interrupted run left on disk."""
        width = self._model.hidden_size
        for number, batch in enumerate(self._batches):
            states.expect(number, (*batch["input_ids"].shape, width), torch.bfloat16)

    def _states(self, index: int, lane: Lane) -> Iterator[tuple[int, torch.Tensor]]:
        """What enters a layer, batch by batch."""
        if index > 0:
            yield from lane.batches(len(self._batches))
            return
        for number, batch in enumerate(self._batches):
            yield number, self._model.embed(batch)

    def _run_layer(self, index: int, layer: nn.Module, lane: Lane) -> LayerObserver:
        observer = self._observer(index)
        self._progress.begin(f"calibrate layer {index}", total=len(self._batches), unit="batch")
        finite = []
        with observer.watching(layer):
            replay = self._replay(index, layer)
            for number, hidden in self._states(index, lane):
                batch = self._batches[number]
                observer.keep_T = _kept(batch, self._model.device)
                result, is_finite = replay(hidden) if replay else self._step(index, batch, hidden)
                finite.append(is_finite)
                if index + 1 < len(self._model.layers):
                    lane.put(number, result)
                self._progress.advance()
            lane.finish()
        _require_finite(torch.stack(finite), lambda place: (index, self._numbers[place]))
        return observer

    def _step(self, index: int, batch: Batch, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What a layer makes of a batch's states, and whether it is finite."""
        arguments = self._model.layer_arguments(batch, index)
        result = self._model.layers[index](states, None, **arguments)
        return result, _is_finite(result)

    def _replay(self, index: int, layer: nn.Module) -> Replay | None:
        """For a layer that does the same for every batch, and asks nothing of the device meanwhile.

        Second moments are summed by experts' row counts, which are read on the host.
        """
        products = [p for p in layer.get_submodule("experts").parameters() if p.dim() == 3]
        if self._moments is not None or not self._alike or not all(map(experts.has_grouped_product, products)):
            return None
        return Replay(partial(self._step, index, self._batches[0]), self._model.device)

    @cached_property
    def _alike(self) -> bool:
        """Whether all batches are text of one shape, without padding."""
        shapes = {batch["input_ids"].shape for batch in self._batches}
        return len(shapes) == 1 and all(
            set(batch) == PLAIN and bool(batch["attention_mask"].all()) for batch in self._batches
        )

    def _observer(self, index: int) -> LayerObserver:
        marker = f"layers.{index}."
        linears = {
            str(linear.name).split(marker, 1)[1]: linear
            for linear in self._gemma.linears.values()
            if linear.layer == index and linear.expert is None
        }
        return LayerObserver(linears, self._gemma.num_experts, self._model.device, self._moments)


def _reader_of(layer: nn.Module, index: int) -> Callable[[LinearModule], torch.Tensor]:
    marker = f"layers.{index}."
    parameters = {name: parameter.detach() for name, parameter in layer.named_parameters()}

    def read(linear: LinearModule) -> torch.Tensor:
        parameter = parameters[linear.tensor.split(marker, 1)[1]]
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


def _require_finite(finite: torch.Tensor, named: Callable[[int], tuple[int, int]]) -> None:
    if not bool(finite.all()):
        layer, batch = named(int((~finite).int().argmax()))
        raise QuantizationError(
            f"layer {layer}, batch {batch}: its output holds NaN or infinity; look at that layer's weights in the "
            "source, or at the batch's tokens"
        )
