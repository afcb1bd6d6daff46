"""The built-in quantizer, on :mod:`fourfold.engine`: no toolchain, no un-fusing.

Where activations are read, layers are calibrated one after the other, or all of them by several processes, and packed
as they come; where they are not, no model is loaded and weights go through in pieces.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from itertools import chain, groupby
from pathlib import Path
from typing import TYPE_CHECKING

from fourfold.errors import ConfigError
from fourfold.interfaces.quantizer import QuantizeJob, Quantizer
from fourfold.reference.options import ReferenceQuantizerOptions

if TYPE_CHECKING:
    import torch

    from fourfold.artifact import ArtifactWriter
    from fourfold.checkpoint.reader import TensorReader
    from fourfold.engine.calibrate import Batch, Calibration, ObservedLayer
    from fourfold.engine.model import LayerwiseModel
    from fourfold.engine.pack import Packer
    from fourfold.engine.work import PackedLayer, WorkFolder
    from fourfold.models.gemma4 import LinearModule
    from fourfold.progress import Progress

_GIB = 2**30
_TURN_S = 5e-5


class ReferenceQuantizer(Quantizer[ReferenceQuantizerOptions]):
    """Both schemes, every algorithm of its options."""

    def quantize(self, job: QuantizeJob, artifact: ArtifactWriter, progress: Progress) -> None:
        """See :class:`fourfold.interfaces.quantizer.Quantizer`."""
        from fourfold.checkpoint.reader import TensorReader

        self.options.check(job.recipe, job.device)
        if getattr(job.unfuser.options, "calibrate_all_experts", False):
            raise ConfigError(
                "quantizer 'reference' calibrates on routed tokens, without un-fusing: leave out "
                "--unfuser-option calibrate_all_experts=true, or use --quantizer modelopt"
            )
        with closing(TensorReader(job.source)) as reader:
            if not self.options.reads_tokens(job.recipe):
                self._weights_only(job, reader, artifact, progress)
            elif self.options.stream:
                self._streamed(job, reader, artifact, progress)
            else:
                self._give(job, self._observed(job, reader, progress), artifact)

    def _weights_only(
        self, job: QuantizeJob, reader: TensorReader, artifact: ArtifactWriter, progress: Progress
    ) -> None:
        """Module after module as they are read; memory is bounded by a batch of matrices and a shard."""
        from fourfold.engine.scales import read_input_scales, rounding_inputs

        folder = self.options.input_scales
        scales = read_input_scales(Path(folder), rounding_inputs(job.targets, job.recipe)) if folder else {}
        progress.begin("quantize weights", total=len(job.targets), unit="module")
        for _, targets in groupby(job.targets, key=lambda module: module.layer):
            for module, weight in self._packer(job).pack(targets, reader.module):
                artifact.add_weight(module, weight, scales.get(module.name))
                progress.advance()

    def _observed(self, job: QuantizeJob, reader: TensorReader, progress: Progress) -> Iterator[ObservedLayer]:
        from fourfold.engine.calibrate import ObservedLayer
        from fourfold.engine.distributed import batches_of, calibrate_in_processes, processes_for

        if (processes := processes_for(self.options.processes, job.device)) > 1:
            observed = calibrate_in_processes(job, self._attention(job), self.options.fuse, processes, progress)
            for index, observations in enumerate(observed):
                yield ObservedLayer(index, observations, reader.module)
        else:
            batches = batches_of(job.tokens, job.batch_size)
            yield from self._calibration(job, self._model(job, reader), batches, progress).layers()

    def _streamed(self, job: QuantizeJob, reader: TensorReader, artifact: ArtifactWriter, progress: Progress) -> None:
        from fourfold.engine.work import PackedLayer, WorkFolder, identity_of

        if self.options.work is None:
            # Inside the artifact, and gone before it is: with it goes what an interrupted run leaves.
            with tempfile.TemporaryDirectory(prefix="hidden-", dir=artifact.folder) as spill:
                self._give(job, self._streamed_layers(job, reader, Path(spill), progress), artifact)
            return
        with WorkFolder(Path(self.options.work), identity_of(job, self.options.recorded())) as work:
            self._go_on(job, reader, work, progress)
            for index in range(job.gemma.num_layers):
                PackedLayer.load(work.layer(index), index, _targets(job, index)).give(artifact)

    def _streamed_layers(
        self, job: QuantizeJob, reader: TensorReader, spill: Path, progress: Progress
    ) -> Iterator[ObservedLayer]:
        """In as many passes as host memory asks for; where they cannot be put together, or it holds no batch, states
        go to ``spill``.
        """
        from fourfold.engine.distributed import batches_of
        from fourfold.engine.hidden import HiddenStates, host_memory
        from fourfold.engine.lanes import StreamLane
        from fourfold.engine.passes import in_passes, largest_states_bytes

        device, room = _device(job), int(self.options.host_memory_gib * _GIB)
        pinned = device.type != "cpu"
        model, batches = self._model(job, reader), batches_of(job.tokens, job.batch_size)
        states = HiddenStates(spill, room, pinned=pinned)
        size, at_once = largest_states_bytes(batches, model.hidden_size), 0
        if not self.options.needs_tokens:
            at_once = host_memory(room, pinned=pinned).capacity(size)

        def calibrate(numbers: range) -> Iterator[ObservedLayer]:
            states.begin_anew(size, len(numbers))
            share = [batches[number] for number in numbers]
            return self._calibration(job, model, share, progress, numbers).layers(StreamLane(states, device))

        yield from in_passes(calibrate, len(batches), at_once or len(batches))

    def _give(self, job: QuantizeJob, layers: Iterable[ObservedLayer], artifact: ArtifactWriter) -> None:
        """Pack a layer while the next one is calibrated, and write it while the next one is packed."""
        with ThreadPoolExecutor(1) as packer, ThreadPoolExecutor(1) as writer, short_turns():
            packing: Future[PackedLayer] | None = None
            writing: Future[None] | None = None
            for layer in chain(layers, [None]):
                if packing is not None:
                    packed = packing.result()
                    if writing is not None:
                        writing.result()
                    writing = writer.submit(packed.give, artifact)
                if layer is None:
                    break
                packing = packer.submit(self._packed, job, layer)
                if _device(job).type == "cpu" or layer.observations.moments:
                    # On a CPU the two would take turns; and two layers' moments are not to be held.
                    packing.result()
            if writing is not None:
                writing.result()

    def _go_on(self, job: QuantizeJob, reader: TensorReader, work: WorkFolder, progress: Progress) -> None:
        """Run and save the layers that ``work`` lacks."""
        from fourfold.engine.distributed import batches_of
        from fourfold.engine.hidden import HiddenStates
        from fourfold.engine.lanes import StreamLane

        first = work.num_finished
        if first == job.gemma.num_layers:
            return
        states = HiddenStates(work.hidden, 0, layer=first, pinned=job.device != "cpu", durable=True)
        batches = batches_of(job.tokens, job.batch_size)
        calibration = self._calibration(job, self._model(job, reader), batches, progress)
        if first:
            progress.note(f"{work.path}: going on at layer {first}")
            states.remove_others()
            calibration.expect(states)
        for layer in calibration.layers(StreamLane(states, _device(job)), first):
            self._packed(job, layer).save(work.layer(layer.index))

    def _packed(self, job: QuantizeJob, layer: ObservedLayer) -> PackedLayer:
        from fourfold.engine.scales import input_scales, weight_fallbacks
        from fourfold.engine.streams import OwnStream, Purpose
        from fourfold.engine.work import PackedLayer

        targets = _targets(job, layer.index)
        per_layer = self.options.expert_inputs == "layer"
        scales, fallbacks = input_scales(targets, layer.observations, job.recipe, per_layer=per_layer)
        fallbacks += weight_fallbacks(targets, layer.observations, self.options.algorithm)
        result = PackedLayer(layer.index, tokens_E=layer.observations.tokens_E, fallbacks=fallbacks)
        with OwnStream(Purpose.PACK, _device(job)).work():
            for module, weight in self._packer(job).pack(targets, layer.read, layer.observations):
                result.weights.append((module, weight, scales.get(module.name)))
        return result

    def _packer(self, job: QuantizeJob) -> Packer:
        from fourfold.engine.pack import Packer

        options = self.options
        return Packer(
            algorithm=options.algorithm,
            device=_device(job),
            damping=options.gptq_damping,
            sweeps=options.gptq_sweeps,
        )

    def _calibration(
        self,
        job: QuantizeJob,
        model: LayerwiseModel,
        batches: Sequence[Batch],
        progress: Progress,
        numbers: range | None = None,
    ) -> Calibration:
        from fourfold.engine.calibrate import Calibration
        from fourfold.engine.moments import MomentKind

        kinds = {"local-hessian": MomentKind.BLOCKS, "gptq": MomentKind.FULL}
        return Calibration(model, job.gemma, batches, progress, kinds.get(self.options.algorithm), numbers)

    def _model(self, job: QuantizeJob, reader: TensorReader) -> LayerwiseModel:
        from fourfold.engine.model import LayerwiseModel

        names, attention = tuple(job.source.tensors), self._attention(job)
        return LayerwiseModel(job.model_path, reader, names, str(_device(job)), attention, fuse=self.options.fuse)

    def _attention(self, job: QuantizeJob) -> str:
        if self.options.attention != "auto":
            return self.options.attention
        return "eager" if job.device == "cpu" else "sdpa"


@contextmanager
def short_turns() -> Iterator[None]:
    """Threads take turns at Python a hundred times as often as usual.

    Who starts kernels gives Python away at every one, and would wait 5 ms for it each time while another thread packs:
    the GPU would idle.
    """
    usual = sys.getswitchinterval()
    sys.setswitchinterval(_TURN_S)
    try:
        yield
    finally:
        sys.setswitchinterval(usual)


def _targets(job: QuantizeJob, layer: int) -> tuple[LinearModule, ...]:
    return tuple(module for module in job.targets if module.layer == layer)


def _device(job: QuantizeJob) -> torch.device:
    import torch

    return torch.device("cuda" if job.device == "auto" else job.device)
