"""The run: every layer once, all streams of hidden states through it, then the model's answers.

The teacher is the unquantized model: its layer inputs are recorded and every layer is measured on them. A *stream* is
the hidden states of all calibration rows under one choice of quantized linears; streams pass through a layer side by
side, so weights are read once however many choices are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from fourfold.calibration import build_token_set
from fourfold.checkpoint.canonical import CanonicalFolder
from fourfold.checkpoint.index import TensorFolder
from fourfold.config import Scheme
from fourfold.errors import ConfigError
from fourfold.models.gemma4 import Gemma4Moe, ModuleKind, read_gemma4
from fourfold.models.resolve import resolve_model
from fourfold.plan import require_device
from fourfold.sensitivity.findings import Choice, Findings, LayerFinding, LinearFinding, Stream
from fourfold.sensitivity.report import SensitivityReport
from fourfold.sensitivity.spec import Divergence, SensitivityConfig

if TYPE_CHECKING:
    import torch

    from fourfold.calibration import TokenSet
    from fourfold.progress import Progress
    from fourfold.sensitivity.layer import QuantizableLayer
    from fourfold.sensitivity.textmodel import TextModel
    from fourfold.sensitivity.weights import WeightSource

#: A layer of one batch: hidden states [B, T, H] to hidden states.
Call = Callable[["torch.Tensor"], "torch.Tensor"]


def measure_sensitivity(config: SensitivityConfig, progress: Progress) -> SensitivityReport:
    """Run it.

    Raises a :class:`fourfold.errors.FourfoldError` that names the option: no source for a checkpoint, one that is
    not its own, a model that is no Gemma 4 MoE, calibration data that cannot be used.
    """
    import torch

    from fourfold.sensitivity.answers import measure_answers
    from fourfold.sensitivity.rows import build_report
    from fourfold.sensitivity.textmodel import TextModel
    from fourfold.sensitivity.weights import require_scheme

    require_device(config.device)
    if config.device == "auto":
        raise ConfigError("device: one layer is in memory at a time, so one device is enough; use cpu or cuda")
    source, gemma, weights = _open(config)
    scheme = require_scheme(config.scheme, weights)
    tokens = build_token_set(config.calibration, source.path, progress)
    if tokens.media is not None:
        raise ConfigError("calibration.source: sensitivity is measured on text; name a source without pictures")
    if tokens.has_padding:
        raise ConfigError("calibration.packing: padding would enter every sum; use concatenate")
    model = TextModel(source, device=config.device, dtype=getattr(torch, config.dtype))
    with torch.no_grad():
        findings = _Run(config, scheme, weights, model, tokens, progress).run(_prefix(gemma))
        answers = measure_answers(model, tokens, findings.streams, progress)
    return build_report(config, scheme, weights, gemma, tokens, findings.layers, answers)


def _open(config: SensitivityConfig) -> tuple[TensorFolder, Gemma4Moe, WeightSource]:
    from fourfold.sensitivity.weights import CheckpointWeights, CodecWeights, is_quantized

    folder = TensorFolder(resolve_model(config.model))
    if not is_quantized(folder):
        if config.source is not None:
            raise ConfigError(f"source: {config.model} is not quantized, so it is its own source; leave --source out")
        gemma = read_gemma4(folder)
        return folder, gemma, CodecWeights(folder, gemma)
    if config.source is None:
        raise ConfigError(f"source: {config.model} is quantized; name the model it was made from with --source")
    source = TensorFolder(resolve_model(config.source))
    gemma = read_gemma4(source)
    return source, gemma, CheckpointWeights(CanonicalFolder(folder.path), gemma)


def _prefix(gemma: Gemma4Moe) -> str:
    """What stands before ``layers.`` in the model's names."""
    return gemma.experts_module(0).partition("layers.")[0]


class _Run:
    """The streams' way through the layers."""

    def __init__(
        self,
        config: SensitivityConfig,
        scheme: Scheme,
        weights: WeightSource,
        model: TextModel,
        tokens: TokenSet,
        progress: Progress,
    ) -> None:
        self._divergence, self._scheme, self._weights = config.divergence, scheme, weights
        self._model, self._tokens, self._progress = model, tokens, progress

    def run(self, prefix: str) -> Findings:
        """Every layer in turn; the streams that are left are at the last layer's output."""
        from fourfold.sensitivity.layer import QuantizableLayer

        batches = [self._model.rows(batch.input_ids) for batch in self._tokens.batches()]
        teacher = [self._model.embed(rows) for rows in batches]
        findings = Findings()
        self._progress.begin("layers", total=self._model.num_layers, unit="layer")
        for index in range(self._model.num_layers):
            targets = tuple(module for module in self._weights.targets if module.layer == index)
            layer = QuantizableLayer(
                self._model.take_layer(index), f"{prefix}layers.{index}.", self._weights.decode(targets)
            )
            calls = [partial(rows.through, index, layer.module) for rows in batches]
            teacher = self._pass_layer(index, layer, calls, teacher, findings)
            self._progress.advance()
        if self._divergence is not Divergence.NONE:
            findings.streams[-1, None] = Stream((-1, None), teacher)
        return findings

    def _pass_layer(
        self,
        index: int,
        layer: QuantizableLayer,
        calls: Sequence[Call],
        teacher: list[torch.Tensor],
        findings: Findings,
    ) -> list[torch.Tensor]:
        """The teacher's hidden states behind the layer; every other stream is moved on in place."""
        if layer.needs_scales:
            with layer.observing():
                for call, hidden in zip(calls, teacher, strict=True):
                    call(hidden)
        with layer.measuring():
            after = [call(hidden) for call, hidden in zip(calls, teacher, strict=True)]
        for choice in self._choices_from(layer):
            if choice not in findings.streams:
                findings.streams[choice] = Stream(choice, list(teacher))
        for stream in findings.streams.values():
            with layer.quantized(stream.chooses, self._scheme):
                for number, call in enumerate(calls):
                    stream.hidden[number] = call(stream.hidden[number])
        findings.layers.append(self._finding(index, layer, calls, teacher, after, findings))
        return after

    def _choices_from(self, layer: QuantizableLayer) -> Iterator[Choice]:
        """Choices whose first quantized layer this may be."""
        if self._divergence is Divergence.NONE or not layer.states:
            return
        yield None, None
        for kind in layer.kinds:
            yield None, kind
            if self._divergence is Divergence.GROUPS:
                yield layer.states[0].module.layer, kind

    def _finding(
        self,
        index: int,
        layer: QuantizableLayer,
        calls: Sequence[Call],
        before: list[torch.Tensor],
        after: list[torch.Tensor],
        findings: Findings,
    ) -> LayerFinding:
        norm = sum(float(hidden.double().square().sum()) for hidden in after)
        errors = {}
        for kind in layer.kinds:
            stream = findings.streams.get((index, kind))
            changed = stream.hidden if stream else self._behind(layer, kind, calls, before)
            error = sum(float((q.double() - r).square().sum()) for q, r in zip(changed, after, strict=True))
            errors[kind] = (error / norm) ** 0.5 if norm else 0.0
        linears = [
            LinearFinding(
                module=state.module,
                tokens=state.tokens,
                weight_norm=state.weight_norm,
                weight_error=state.weight_error,
                norm=float(state.norm),
                error_w4a16=float(state.error_w4a16),
                error_w4a4=None if state.input_scale is None else float(state.error_w4a4),
            )
            for state in layer.states
        ]
        return LayerFinding(index, linears, errors)

    def _behind(
        self, layer: QuantizableLayer, kind: ModuleKind, calls: Sequence[Call], before: list[torch.Tensor]
    ) -> Iterator[torch.Tensor]:
        """The layer's outputs with one role in NVFP4, a batch at a time."""
        with layer.quantized(lambda module: module.kind is kind, self._scheme):
            for call, hidden in zip(calls, before, strict=True):
                yield call(hidden)
