"""The published card's table: metric, baseline, model, factor."""

from __future__ import annotations

from fourfold.bench.run import BenchReport, BenchSide, Spread

_MEASURES = {"gpu": "GPU memory held", "resident-peak": "Peak memory (resident)"}


def rows(report: BenchReport) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """(header, rows) as text; the factor says how many times better the model is, so above 1 is always good."""
    base, subject = report.baseline, report.subject
    if base is None:
        body = [(f.label, _cell(f)) for f in subject.figures]
        body += [(label, _gigabytes(value)) for label, value, _ in _sizes(subject, None)]
        return ("Metric", subject.model), tuple(body)
    lines = [
        (f.label, _cell(b), _cell(f), _factor(f.median, b.median, larger_is_better=f.larger_is_better))
        for b, f in zip(base.figures, report.subject.figures, strict=True)
    ]
    for label, value, reference in _sizes(subject, base):
        factor = _factor(float(value or 0), float(reference or 0), larger_is_better=False)
        lines.append((label, _gigabytes(reference), _gigabytes(value), factor))
    names = (base.model, subject.model) if base.model != subject.model else (base.given, subject.given)
    return ("Metric", *names, "Factor"), tuple(lines)


def _sizes(subject: BenchSide, base: BenchSide | None) -> list[tuple[str, int | None, int | None]]:
    memory = subject.memory
    label = _MEASURES[memory.measure] if memory else "Memory"
    reference = base.memory.num_bytes if base and base.memory else None
    return [
        (label, memory.num_bytes if memory else None, reference),
        ("Model size on disk", subject.size_bytes, base.size_bytes if base else None),
    ]


def _cell(figure: Spread) -> str:
    return f"{figure.median:.1f} ({figure.least:.1f} to {figure.most:.1f}) {figure.unit}"


def _factor(value: float, reference: float, *, larger_is_better: bool) -> str:
    if value <= 0 or reference <= 0:
        return ""
    return f"{value / reference if larger_is_better else reference / value:.2f}x"


def _gigabytes(count: int | None) -> str:
    if count is None:
        return "unknown"
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.2f} MB"
