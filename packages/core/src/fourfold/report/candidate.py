"""The one checkpoint a model card is about, and every record that speaks of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fourfold.bench.run import BenchReport
from fourfold.errors import ConfigError
from fourfold.evaluate.target import folder_bytes
from fourfold.manifest import Manifest
from fourfold.report.collect import Measured, NamedManifest
from fourfold.results import Comparison, EvalRecord, MetricResult, ModelRecord
from fourfold.sizing import ModelShape, read_shape


@dataclass(frozen=True)
class Candidate:
    """A checkpoint; what is None was not found."""

    name: str
    manifest: Manifest | None
    shape: ModelShape | None
    has_vision: bool
    record: EvalRecord | None
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
        return self.record.model if self.record else None

    def comparisons(self) -> tuple[Comparison, ...]:
        """Quality scores beside the baseline's."""
        found = self.record.comparisons if self.record else ()
        return tuple(c for c in found if c.unit == "proportion" and not c.metric.startswith("part-"))

    def speed(self, name: str) -> tuple[float | None, float | None]:
        """(baseline's, this one's) median of the evaluation's speed metric ``name``."""
        found: list[float | None] = []
        for comparison in self.record.comparisons if self.record else ():
            if comparison.task == "speed" and comparison.metric == name:
                return comparison.baseline_score, comparison.score
        task = self.record.task("speed") if self.record else None
        metrics: tuple[MetricResult, ...] = task.metrics if task else ()
        found = [metric.score for metric in metrics if metric.name == name]
        return None, found[0] if found else None


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
    named = next(
        (
            e
            for e in measured.evaluations
            if e.name == name or (chosen is not None and e.record.model.manifest_sha256 == chosen.manifest_sha256)
        ),
        None,
    )
    record = named.record if named else None
    cell = cells.get(name)
    config = folder / chosen.folder / "config.json" if chosen else None
    shape = read_shape(str(config)) if config is not None and config.is_file() else None
    bench = next((b for b in measured.benches if b.subject.model == name or len(by_name) == 1), None)
    before, after = _sizes(record, bench)
    if chosen is not None:
        after = folder_bytes(folder / chosen.folder)
    return Candidate(
        name=name,
        manifest=chosen.manifest if chosen else None,
        shape=shape,
        has_vision=bool(shape and shape.vision_numel),
        record=record,
        bench=bench,
        bytes_before=before or (cell.bytes_before if cell else None),
        bytes_after=after or (cell.bytes_after if cell else None),
        verified=cell.verified if cell else None,
        checks=cell.checks if cell else None,
        findings=(cell.findings or 0) if cell else 0,
        doubts=cell.doubts if cell else 0,
    )


def _sizes(record: EvalRecord | None, bench: BenchReport | None) -> tuple[int | None, int | None]:
    before = after = None
    if record is not None:
        after = record.model.size_bytes
        before = record.baseline.size_bytes if record.baseline else None
    if bench is not None:
        after = after or bench.subject.size_bytes
        before = before or (bench.baseline.size_bytes if bench.baseline else None)
    return before, after
