"""The one checkpoint a model card is about, and every record that speaks of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fourfold.bench.run import BenchReport
from fourfold.errors import ConfigError
from fourfold.evaluate.target import folder_bytes
from fourfold.manifest import Manifest
from fourfold.report.collect import Measured, NamedManifest
from fourfold.results import Comparison, EvalRecord, ModelRecord, TaskResult
from fourfold.sizing import ModelShape, read_shape


@dataclass(frozen=True)
class Candidate:
    """A checkpoint; what is None was not found."""

    name: str
    manifest: Manifest | None
    shape: ModelShape | None
    has_vision: bool
    #: Every evaluation of it; no task twice.
    records: tuple[EvalRecord, ...]
    bench: BenchReport | None
    bytes_before: int | None
    bytes_after: int | None
    verified: bool | None
    checks: int | None
    #: The verifier's findings, and those of them that are doubts.
    findings: int
    doubts: int

    @property
    def model(self) -> ModelRecord | None:
        """What answered in the evaluation."""
        return self.records[0].model if self.records else None

    @property
    def machines(self) -> str:
        """Where it was evaluated, by GPU, else by processor; empty where it was not."""
        found = (", ".join(record.machine.gpus) or record.machine.processor for record in self.records)
        return ", ".join(dict.fromkeys(found))

    @property
    def cut(self) -> tuple[TaskResult, ...]:
        """Tasks whose limit was reached."""
        return tuple(task for record in self.records for task in record.cut)

    def _comparisons(self) -> Iterator[Comparison]:
        return (comparison for record in self.records for comparison in record.comparisons)

    def comparisons(self) -> tuple[Comparison, ...]:
        """Quality scores beside the baseline's."""
        return tuple(c for c in self._comparisons() if c.is_quality and not c.metric.startswith("part-"))

    def speed(self, name: str) -> tuple[float | None, float | None]:
        """(baseline's, this one's) median of the evaluation's speed metric ``name``."""
        for comparison in self._comparisons():
            if comparison.task == "speed" and comparison.metric == name:
                return comparison.baseline_score, comparison.score
        tasks = (task for record in self.records if (task := record.task("speed")) is not None)
        found = (metric.score for task in tasks for metric in task.metrics if metric.name == name)
        return None, next(found, None)


def choose(measured: Measured, folder: Path, name: str | None) -> Candidate:
    """The checkpoint called ``name``, or the only one there is.

    Raises :class:`ConfigError` that lists the names, where there are several, none, or none so called.
    """
    cells = {cell.name: cell for cell in measured.study.cells if cell.status == "done"} if measured.study else {}
    by_name: dict[str, NamedManifest | None] = {}
    for checkpoint in measured.checkpoints:
        cell = next((c for c in cells.values() if c.checkpoint == checkpoint.folder), None)
        by_name[cell.name if cell else checkpoint.name] = checkpoint
    if not by_name:
        by_name = {named.name: None for named in measured.evaluations}
    if name is None and len(by_name) == 1:
        name = next(iter(by_name))
    if name not in by_name:
        known = ", ".join(sorted(by_name)) or "none"
        wanted = "several checkpoints" if name is None else f"no checkpoint {name!r}"
        raise ConfigError(f"checkpoint: {wanted} below {folder}; give one of: {known}")
    chosen = by_name[name]
    records = _evaluations_of(measured, name, chosen)
    cell = cells.get(name)
    config = folder / chosen.folder / "config.json" if chosen else None
    shape = read_shape(str(config)) if config is not None and config.is_file() else None
    bench = next((b for b in measured.benches if b.subject.model == name or len(by_name) == 1), None)
    before, after = _sizes(records, bench)
    if chosen is not None:
        after = folder_bytes(folder / chosen.folder)
    return Candidate(
        name=name,
        manifest=chosen.manifest if chosen else None,
        shape=shape,
        has_vision=bool(shape and shape.vision_numel),
        records=records,
        bench=bench,
        bytes_before=before or (cell.bytes_before if cell else None),
        bytes_after=after or (cell.bytes_after if cell else None),
        verified=cell.verified if cell else None,
        checks=cell.checks if cell else None,
        findings=(cell.findings or 0) if cell else 0,
        doubts=cell.doubts if cell else 0,
    )


def _evaluations_of(measured: Measured, name: str, chosen: NamedManifest | None) -> tuple[EvalRecord, ...]:
    """Those of that name or that manifest. :class:`ConfigError` for a task in two: a card has one score of it."""
    found = [
        e
        for e in measured.evaluations
        if e.name == name or (chosen is not None and e.record.model.manifest_sha256 == chosen.manifest_sha256)
    ]
    counts = Counter(task.task for each in found for task in each.record.tasks)
    if twice := [task for task, count in counts.items() if count > 1]:
        raise ConfigError(
            f"checkpoint {name!r}: task {twice[0]!r} was evaluated {counts[twice[0]]} times; leave one of the "
            "evaluations in the folder"
        )
    return tuple(each.record for each in found)


def _sizes(records: tuple[EvalRecord, ...], bench: BenchReport | None) -> tuple[int | None, int | None]:
    before = after = None
    for record in records:
        after = after or record.model.size_bytes
        before = before or (record.baseline.size_bytes if record.baseline else None)
    if bench is not None:
        after = after or bench.subject.size_bytes
        before = before or (bench.baseline.size_bytes if bench.baseline else None)
    return before, after
