"""The built-in quantizer, on :mod:`fourfold.engine`: no toolchain, no un-fusing.

Where activations are read, calibration comes first, resident, streamed or by several processes; where they are not,
no model is loaded and weights go through in pieces.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from fourfold.errors import ConfigError
from fourfold.interfaces.quantizer import QuantizeJob, Quantizer
from fourfold.reference.options import ReferenceQuantizerOptions

if TYPE_CHECKING:
    import torch

    from fourfold.artifact import ArtifactWriter
    from fourfold.checkpoint.reader import TensorReader
    from fourfold.engine.calibrate import Calibration, ObservedLayer
    from fourfold.engine.pack import Packer
    from fourfold.engine.work import PackedLayer, WorkFolder
    from fourfold.models.gemma4 import LinearModule
    from fourfold.progress import Progress

_GIB = 2**30


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
                self._give(job, self._observed(job, reader, progress), artifact, progress)

    def _weights_only(
        self, job: QuantizeJob, reader: TensorReader, artifact: ArtifactWriter, progress: Progress
    ) -> None:
        """Module after module as they are read; memory is bounded by a batch of matrices and a shard."""
        from fourfold.engine.scales import read_input_scales

        folder = self.options.input_scales
        scales = read_input_scales(Path(folder), job.targets) if folder else {}
        progress.begin("quantize weights", total=len(job.targets), unit="module")
        for _, targets in groupby(job.targets, key=lambda module: module.layer):
            for module, weight in self._packer(job).pack(targets, reader.module):
                artifact.add_weight(module, weight, scales.get(module.name))
                progress.advance()

    def _observed(self, job: QuantizeJob, reader: TensorReader, progress: Progress) -> Iterator[ObservedLayer]:
        from fourfold.engine.calibrate import ObservedLayer
        from fourfold.engine.distributed import calibrate_in_processes, processes_for

        if (processes := processes_for(self.options.processes, job.device)) > 1:
            observed = calibrate_in_processes(job, self._attention(job), self.options.fuse, processes, progress)
            for index, observations in enumerate(observed):
                yield ObservedLayer(index, observations, reader.module)
        else:
            yield from self._calibration(job, reader, progress).resident()

    def _streamed(self, job: QuantizeJob, reader: TensorReader, artifact: ArtifactWriter, progress: Progress) -> None:
        from fourfold.engine.hidden import HiddenStates
        from fourfold.engine.work import PackedLayer, WorkFolder, identity_of

        if self.options.work is None:
            with tempfile.TemporaryDirectory(prefix="hidden-", dir=artifact.folder.parent) as spill:
                room = int(self.options.host_memory_gib * _GIB)
                states = HiddenStates(Path(spill), room, pinned=job.device != "cpu")
                layers = self._calibration(job, reader, progress).streamed(states)
                self._give(job, layers, artifact, None)
            return
        with WorkFolder(Path(self.options.work), identity_of(job, self.options.recorded())) as work:
            self._go_on(job, reader, work, progress)
            for index in range(job.gemma.num_layers):
                PackedLayer.load(work.layer(index), index, _targets(job, index)).give(artifact)
            work.remove()

    def _give(
        self, job: QuantizeJob, layers: Iterable[ObservedLayer], artifact: ArtifactWriter, progress: Progress | None
    ) -> None:
        """Pack every layer, write it while the next one is packed; ``progress`` where packing is a task of its own."""
        with ThreadPoolExecutor(1) as writer:
            writing: Future[None] | None = None
            for layer in layers:
                if progress is not None and writing is None:
                    progress.begin("pack and write layers", total=job.gemma.num_layers, unit="layer")
                packed = self._packed(job, layer)
                if writing is not None:
                    writing.result()
                writing = writer.submit(packed.give, artifact)
                if progress is not None:
                    progress.advance()
            if writing is not None:
                writing.result()

    def _go_on(self, job: QuantizeJob, reader: TensorReader, work: WorkFolder, progress: Progress) -> None:
        """Run and save the layers that ``work`` lacks."""
        from fourfold.engine.hidden import HiddenStates

        first = work.num_finished
        if first == job.gemma.num_layers:
            return
        states = HiddenStates(work.hidden, 0, layer=first if first else -1, pinned=job.device != "cpu")
        calibration = self._calibration(job, reader, progress)
        if first:
            progress.note(f"{work.path}: going on at layer {first}")
            calibration.expect(states)
        for layer in calibration.streamed(states, first):
            self._packed(job, layer).save(work.layer(layer.index))

    def _packed(self, job: QuantizeJob, layer: ObservedLayer) -> PackedLayer:
        from fourfold.engine.scales import input_scales, weight_fallbacks
        from fourfold.engine.work import PackedLayer

        targets = _targets(job, layer.index)
        per_layer = self.options.expert_inputs == "layer"
        scales, fallbacks = input_scales(targets, layer.observations, job.recipe, per_layer=per_layer)
        fallbacks += weight_fallbacks(targets, layer.observations, self.options.algorithm)
        result = PackedLayer(layer.index, tokens_E=layer.observations.tokens_E, fallbacks=fallbacks)
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

    def _calibration(self, job: QuantizeJob, reader: TensorReader, progress: Progress) -> Calibration:
        from fourfold.engine.calibrate import Calibration
        from fourfold.engine.distributed import batches_of
        from fourfold.engine.model import LayerwiseModel
        from fourfold.engine.moments import MomentKind

        kinds = {"local-hessian": MomentKind.BLOCKS, "gptq": MomentKind.FULL}
        names, attention = tuple(job.source.tensors), self._attention(job)
        model = LayerwiseModel(job.model_path, reader, names, str(_device(job)), attention, fuse=self.options.fuse)
        batches = batches_of(job.tokens, job.batch_size)
        return Calibration(model, job.gemma, batches, progress, kinds.get(self.options.algorithm))

    def _attention(self, job: QuantizeJob) -> str:
        if self.options.attention != "auto":
            return self.options.attention
        return "eager" if job.device == "cpu" else "sdpa"


def _targets(job: QuantizeJob, layer: int) -> tuple[LinearModule, ...]:
    return tuple(module for module in job.targets if module.layer == layer)


def _device(job: QuantizeJob) -> torch.device:
    import torch

    return torch.device("cuda" if job.device == "auto" else job.device)
