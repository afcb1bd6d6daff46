"""The report's content, once, for every form it is written in: sections of text, tables and plots."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fourfold.models.gemma4 import ModuleKind
from fourfold.page import NONE, Series, Span, Table, bars, heat_map, lines, spans
from fourfold.report.collect import Measured
from fourfold.results import PROPORTION, Comparison, EvalRecord, Interval, Machine, MetricResult
from fourfold.sensitivity import SensitivityReport, sensitivity_tables
from fourfold.study.table import study_tables


@dataclass(frozen=True)
class Plot:
    """A finished figure; Markdown leaves it out."""

    svg: str


@dataclass(frozen=True)
class Absent:
    """What was not measured, said in words."""

    text: str


Item = str | Table | Plot | Absent


@dataclass(frozen=True)
class Section:
    """A heading and its items."""

    title: str
    items: tuple[Item, ...]


def sections(measured: Measured) -> tuple[Section, ...]:
    """Every section in reading order; one without anything measured says so."""
    found = (
        ("What was made", _made(measured)),
        ("Quality", _quality(measured)),
        ("Divergence from BF16", _divergence(measured)),
        ("Errors by layer", _errors(measured)),
        ("Expert coverage", _coverage(measured)),
        ("Speed", _speed(measured)),
        ("Size", _sizes(measured)),
        ("How it was measured", _provenance(measured)),
        ("Not measured", (Absent(text) for text in measured.absent)),
    )
    finished = (Section(title, tuple(items)) for title, items in found)
    return tuple(section for section in finished if section.items)


def _made(measured: Measured) -> Iterator[Item]:
    if measured.study is not None:
        yield measured.study.study.summary
        yield from study_tables(measured.study)
        if any(cell.doubts for cell in measured.study.cells):
            yield (
                "A doubt is what the verifier cannot settle from files: weights carried further from their source than "
                "rounding leaves them. It makes no checkpoint wrong; the scores decide."
            )


def _quality(measured: Measured) -> Iterator[Item]:
    for named in measured.evaluations:
        record = named.record
        quality = [c for c in record.comparisons if c.unit == PROPORTION]
        rows = [
            Span(c.label, 100 * c.retained, *_percent_ends(c.retained_interval))
            for c in quality
            if c.retained is not None
        ]
        if rows:
            yield Plot(spans(f"{named.name}: retained of BF16", rows, reference=100.0, unit=" %"))
        if quality:
            header = ("benchmark", "prompts", "BF16", named.name, "retained", "verdict")
            yield Table(f"{named.name} against {_baseline(record)}", header, tuple(_compared(c) for c in quality))
        elif own := [m for task in record.tasks for m in task.metrics if m.unit == PROPORTION]:
            plain = ("benchmark", "prompts", "score")
            yield Table(f"{named.name}, no baseline", plain, tuple((m.label, f"{m.prompts:,}", score(m)) for m in own))


def _divergence(measured: Measured) -> Iterator[Item]:
    rows = [
        (named.name, metric.label, f"{metric.n:,}", score(metric))
        for named in measured.evaluations
        for task in named.record.tasks
        if any(m.unit == "nats" for m in task.metrics)
        for metric in task.metrics
    ]
    if rows:
        yield Table("served, against BF16", ("checkpoint", "", "positions", "value"), tuple(rows))
    for report in measured.sensitivities:
        name = report.checkpoint or f"{report.model}, rounded to nearest"
        if report.roles:
            labels, values = [row.role for row in report.roles], [row.kl for row in report.roles]
            yield Plot(bars(f"{name}: KL by role, {report.scheme}", labels, values, unit=" nats"))
        if any(row.kl is not None for row in report.groups):
            series = [
                Series(kind, [_group(report, layer, kind, "kl") for layer in _layers(report)]) for kind in ModuleKind
            ]
            yield Plot(lines(f"{name}: KL of one layer's role, nats a token", _layers(report), series, x_label="layer"))
        if report.roles:
            yield from (table for table in sensitivity_tables(report) if table.title.startswith("a role"))


def _errors(measured: Measured) -> Iterator[Item]:
    for report in measured.sensitivities:
        name, layers = report.checkpoint or f"{report.model}, rounded to nearest", _layers(report)
        series = [
            Series(kind, [_group(report, layer, kind, "stream_error") for layer in layers]) for kind in ModuleKind
        ]
        yield Plot(lines(f"{name}: change of each layer's output", layers, series, x_label="layer"))
        for field, scheme in (("output_error_w4a16", "W4A16"), ("output_error_w4a4", "W4A4")):
            series = [Series(kind, [_worst(report, layer, kind, field) for layer in layers]) for kind in ModuleKind]
            if any(value is not None for one in series for value in one.values):
                yield Plot(lines(f"{name}: {scheme} output error, worst projection", layers, series, x_label="layer"))
        yield from (table for table in sensitivity_tables(report) if table.title.startswith("one layer"))


def _coverage(measured: Measured) -> Iterator[Item]:
    counted = {c.name: c.manifest.expert_token_counts for c in measured.checkpoints if c.manifest.expert_token_counts}
    if not counted:
        counted = {r.model: r.expert_token_counts for r in measured.sensitivities if r.expert_token_counts}
    shown: list[dict[str, tuple[int, ...]]] = []
    for name, counts in counted.items():
        # Checkpoints of one study share their calibration tokens; one map stands for all that are equal.
        if counts in shown:
            continue
        shown.append(counts)
        rows = list(counts.values())
        flat = [count for row in rows for count in row]
        yield (
            f"{name}: {len(flat):,} experts, from {min(flat):,} to {max(flat):,} calibration tokens each; "
            f"{flat.count(0)} got none."
        )
        labels = [str(number) for number in range(len(rows))]
        yield Plot(heat_map(f"{name}: calibration tokens by layer and expert", labels, rows, x_label="expert"))


def _speed(measured: Measured) -> Iterator[Item]:
    for bench in measured.benches:
        sides = [side for side in (bench.baseline, bench.subject) if side is not None]
        labels = [figure.label for figure in bench.subject.figures]
        table = []
        for position, label in enumerate(labels):
            cells = [side.figures[position] for side in sides]
            table.append((label, *(f"{c.median:.4g} {c.unit} ({c.least:.4g} to {c.most:.4g})" for c in cells)))
        yield Table(f"on {_machine(bench.machine)}", ("", *(side.model for side in sides)), tuple(table))
        for unit in dict.fromkeys(figure.unit for figure in bench.subject.figures):
            marks = [(f"{side.model}: {f.label}", f.median) for side in sides for f in side.figures if f.unit == unit]
            yield Plot(bars(f"medians, {unit}", [m[0] for m in marks], [m[1] for m in marks], unit=f" {unit}"))
    rows = [
        (
            named.name,
            metric.label,
            score(metric),
            ", ".join(named.record.machine.gpus) or named.record.machine.processor,
        )
        for named in measured.evaluations
        if (task := named.record.task("speed")) is not None
        for metric in task.metrics
    ]
    if rows:
        yield Table("during evaluation", ("checkpoint", "", "median", "machine"), tuple(rows))


def _sizes(measured: Measured) -> Iterator[Item]:
    sizes: dict[str, int] = {}
    for cell in measured.study.cells if measured.study else ():
        if cell.bytes_before and cell.bytes_after:
            sizes.setdefault("BF16", cell.bytes_before)
            sizes[cell.name] = cell.bytes_after
    for named in measured.evaluations:
        for model in (named.record.baseline, named.record.model):
            if model is not None and model.size_bytes is not None:
                sizes.setdefault(model.name, model.size_bytes)
    if sizes:
        megabytes = {name: round(size / 1e6, 3) for name, size in sizes.items()}
        yield Plot(bars("tensors and files, MB", list(megabytes), list(megabytes.values())))
        rows = tuple((name, f"{size:,.2f}") for name, size in megabytes.items())
        yield Table("tensors and files", ("", "MB"), rows)


def _provenance(measured: Measured) -> Iterator[Item]:
    rows = [("GPUs", ", ".join(measured.gpus) or "none")]
    rows += [(name, version) for name, version in sorted(measured.packages.items())]
    if measured.study is not None:
        rows += [("study, sha256", measured.study.study_sha256), ("study, seed", str(measured.study.study.seed))]
    for named in measured.evaluations:
        record = named.record
        cut = ", ".join(f"{task.task} to {task.prompts:,} prompts" for task in record.cut) or "nothing"
        rows.append((f"{named.name}: seed, repeats, cut by a limit", f"{record.seed}, {record.repeats}, {cut}"))
        rows += [
            (f"{named.name}: {t.task}, prompts sha256", t.prompts_sha256) for t in record.tasks if t.prompts_sha256
        ]
    rows += [(f"{c.name}: manifest, sha256", c.manifest_sha256) for c in measured.checkpoints]
    rows += [(f"{r.model}: calibration tokens, sha256", r.tokens.tokens_sha256) for r in measured.sensitivities]
    yield Table("versions, seeds, hashes", ("", ""), tuple(rows))


def _machine(machine: Machine) -> str:
    return ", ".join(machine.gpus) or machine.processor


def score(metric: MetricResult) -> str:
    """A metric's score in its own unit with its interval."""
    if metric.score is None:
        return NONE
    if metric.unit == PROPORTION:
        return f"{100 * metric.score:.2f} %{_interval(metric.interval, 100)}"
    return f"{metric.score:.4g} {metric.unit}{_interval(metric.interval, 1)}"


def _interval(interval: Interval | None, factor: float) -> str:
    return f" ({factor * interval.low:.4g} to {factor * interval.high:.4g})" if interval else ""


def _compared(comparison: Comparison) -> tuple[str, ...]:
    c = comparison
    retained = NONE if c.retained is None else f"{100 * c.retained:.1f} %{_interval(c.retained_interval, 100)}"
    return (c.label, f"{c.prompts:,}", f"{100 * c.baseline_score:.2f} %", f"{100 * c.score:.2f} %", retained, c.words)


def _percent_ends(interval: Interval | None) -> tuple[float | None, float | None]:
    return (100 * interval.low, 100 * interval.high) if interval else (None, None)


def _baseline(record: EvalRecord) -> str:
    return record.baseline.name if record.baseline else "its baseline"


def _layers(report: SensitivityReport) -> list[int]:
    return sorted({row.layer for row in report.groups})


def _group(report: SensitivityReport, layer: int, kind: ModuleKind, field: str) -> float | None:
    return next((getattr(row, field) for row in report.groups if row.key == (layer, kind)), None)


def _worst(report: SensitivityReport, layer: int, kind: ModuleKind, field: str) -> float | None:
    found = [getattr(row, field) for row in report.linears if (row.layer, row.kind) == (layer, kind)]
    return max((value for value in found if value is not None), default=None)
