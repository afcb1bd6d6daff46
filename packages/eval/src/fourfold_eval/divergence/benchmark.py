"""``kl`` as a measurement: the baseline makes the texts and its distributions once, every candidate adds its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fourfold.errors import EvaluationError
from fourfold.evaluate.statistics import Sample, score_interval, standard_error
from fourfold.interfaces.benchmark import BenchmarkJob, Measured, Measurement, MeasurementJob
from fourfold.interfaces.server import Endpoint
from fourfold.progress import Progress
from fourfold.results import PROPORTION, Direction, MetricResult
from fourfold_eval.divergence.answers import BaselineAnswers
from fourfold_eval.divergence.kernel import PositionDivergence, divergence
from fourfold_eval.divergence.logprobs import fetch, load, missing
from fourfold_eval.divergence.sequences import SequenceSet, chat_prompts
from fourfold_eval.options import DivergenceOptions


class Divergence(Measurement[DivergenceOptions]):
    """Teacher-forced: at every token of the baseline's answer, both say what they would have put there."""

    def check(self, job: BenchmarkJob) -> None:
        """Read the prompts, but those of the hub."""
        if self.options.prompts != "gsm8k" or job.data is not None:
            chat_prompts(self.options, job)

    def needs_endpoint(self, job: MeasurementJob) -> bool:
        """Until every text and every distribution is there; :class:`EvaluationError` where what is there forbids it."""
        if job.reference is not None:
            reference = self._reference(job.reference)
            if lacking := missing(reference, job.reference):
                raise _unusable(job.reference, lacking[0])
            return bool(missing(reference, job.folder))
        sequences = self._answers(job).sequences(job.target.name)
        return sequences is None or bool(missing(sequences, job.folder))

    def measure(self, job: MeasurementJob, progress: Progress) -> Measured:
        """No metrics for the baseline itself; :class:`EvaluationError` where it has none to compare with."""
        if job.reference is None:
            sequences = self._own_sequences(job, progress)
            self._fetch(sequences, job, progress)
            return _measured((), sequences)
        reference = self._reference(job.reference)
        self._fetch(reference, job, progress)
        found = []
        for index in range(len(reference.sequences)):
            base, own = load(reference, index, job.reference), load(reference, index, job.folder)
            if base is None or own is None:
                raise _unusable(job.reference if base is None else job.folder, index)
            found.append(divergence(base, own))
        return _measured(_metrics(found, job.seed), reference)

    def _reference(self, folder: Path) -> SequenceSet:
        reference = SequenceSet.load(folder)
        if reference is None:
            raise EvaluationError(f"kl: the baseline has no distributions in {folder}; evaluate kl on it first")
        if reference.options != self.options:
            given = reference.options.canonical_json()
            raise EvaluationError(f"kl: the baseline was measured with other options ({given}); give both the same")
        return reference

    def _fetch(self, sequences: SequenceSet, job: MeasurementJob, progress: Progress) -> None:
        indices = missing(sequences, job.folder)
        if indices:
            fetch(sequences, indices, _endpoint(job), job, progress)

    def _own_sequences(self, job: MeasurementJob, progress: Progress) -> SequenceSet:
        answers = self._answers(job)
        if answers.missing:
            answers.complete(_endpoint(job), job, progress)
        sequences = answers.sequences(job.target.name)
        assert sequences is not None  # every answer came, or complete raised
        answers.save(sequences)
        return sequences

    def _answers(self, job: MeasurementJob) -> BaselineAnswers:
        return BaselineAnswers(job.folder, chat_prompts(self.options, job), self.options)


def _unusable(folder: Path, index: int) -> EvaluationError:
    return EvaluationError(
        f"kl: the distributions of prompt {index} in {folder} are missing, damaged or of another text; "
        "evaluate kl on that model again"
    )


def _endpoint(job: MeasurementJob) -> Endpoint:
    if job.target.endpoint is None:
        raise EvaluationError(f"kl: {job.target.name} is not served")
    return job.target.endpoint


def _measured(metrics: tuple[MetricResult, ...], sequences: SequenceSet) -> Measured:
    return Measured(
        metrics=metrics,
        prompts=len(sequences.sequences),
        prompts_sha256=sequences.ids_sha256,
        details={
            "label": "KL",
            "reference": sequences.model,
            "positions": sum(len(sequence.answer_ids) for sequence in sequences.sequences),
            "truncation": f"top {sequences.options.top_k} of each side" if sequences.options.top_k else "none",
        },
    )


def _metrics(found: list[PositionDivergence], seed: int) -> tuple[MetricResult, ...]:
    counts = np.array([len(each.kl) for each in found], dtype=np.float64)
    kl = Sample(np.array([each.kl.sum() for each in found]), counts, proportion=False)
    same = Sample(np.array([each.same_top.sum() for each in found], dtype=np.float64), counts)
    remainder = Sample(np.array([each.remainder.sum() for each in found]), counts, proportion=False)
    every = np.concatenate([each.kl for each in found])
    percentile = _metric("kl-p99", "KL, 99th percentile of positions", "nats", Direction.LOWER, kl, seed)
    no_error = {"score": float(np.quantile(every, 0.99)), "interval": None, "standard_error": None}
    return (
        _metric("kl", "KL to the baseline", "nats", Direction.LOWER, kl, seed),
        _metric("top1", "top-1 agreement with the baseline", PROPORTION, Direction.HIGHER, same, seed),
        percentile.model_copy(update=no_error),
        _metric("tail", "baseline's probability outside both tops", "probability", Direction.LOWER, remainder, seed),
    )


def _metric(name: str, label: str, unit: str, direction: Direction, sample: Sample, seed: int) -> MetricResult:
    """A mean over positions, its interval over prompts: positions of one answer are not independent."""
    return MetricResult(
        name=name,
        label=label,
        direction=direction,
        unit=unit,
        n=int(sample.counts.sum()),
        prompts=sample.n,
        score=sample.score,
        interval=score_interval(sample, seed),
        standard_error=standard_error(sample),
        per_prompt=False,
    )
