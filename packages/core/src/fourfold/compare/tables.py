"""A report as tables of text: what the terminal prints and the page shows."""

from __future__ import annotations

from collections.abc import Iterable

from fourfold.compare.report import CAUSE_TEXT, Cause, CompareReport, Status, TableRow
from fourfold.page import NONE, Table

#: How many differing tensors a table lists; the JSON report has them all.
NUM_LISTED = 40


def report_tables(report: CompareReport) -> tuple[Table, ...]:
    """Every table of a report, the overview first; tables without rows are left out."""
    tables = (
        _overview(report),
        _causes(report),
        _parts(report),
        _rules(report),
        _rows("by role", report.by_role, with_source=report.source is not None),
        _rows("by layer", report.by_layer, with_source=report.source is not None),
        _differences(report),
        _worst(report),
    )
    return tuple(table for table in tables if table.rows)


def verdict(report: CompareReport) -> str:
    """One sentence: equal or not, at which level."""
    level = f"level {report.level}"
    if report.level == "tolerance":
        level += f" ({report.tolerance:g})"
    return f"{report.a.name} and {report.b.name} are {'equal' if report.equal else 'not equal'} at {level}"


def _overview(report: CompareReport) -> Table:
    tensors = report.tensors
    rows = [
        ("A", f"{report.a.name}: {report.a.layout}, {report.a.num_quantized_modules} quantized modules"),
        ("B", f"{report.b.name}: {report.b.layout}, {report.b.num_quantized_modules} quantized modules"),
        ("tensors compared", str(tensors.total)),
        (str(Status.EQUAL_BYTES), _share(tensors.equal_bytes, tensors.total)),
        (str(Status.EQUAL_DECODED), _share(tensors.equal_decoded, tensors.total)),
        (str(Status.DIFFERING), _share(tensors.differing, tensors.total)),
    ]
    if report.inexact_reciprocals:
        rows.append(("equal but for a reciprocal's last bit", str(report.inexact_reciprocals)))
    return Table(verdict(report), ("", ""), tuple(rows))


def _causes(report: CompareReport) -> Table:
    rows = tuple((name, str(count), CAUSE_TEXT[Cause(name)]) for name, count in report.causes.items())
    return Table("causes (a tensor may have several)", ("cause", "tensors", "meaning"), rows)


def _parts(report: CompareReport) -> Table:
    rows = tuple(
        (name, _share(p.equal, p.tensors), _share(p.differing_elements, p.elements)) for name, p in report.parts.items()
    )
    return Table("stored parts", ("part", "tensors equal to the byte", "values that differ"), rows)


def _rules(report: CompareReport) -> Table:
    if report.rules is None:
        return Table("rules", (), ())
    rows = [("A", name, str(count)) for name, count in report.rules.a.items()]
    rows += [("B", name, str(count)) for name, count in report.rules.b.items()]
    rows.append(
        (
            "both",
            "differing weights traced on both sides",
            _share(report.rules.explained, report.rules.differing),
        )
    )
    return Table("what gives the weights' bytes back from the source", ("side", "rule", "weights"), tuple(rows))


def _rows(title: str, rows: Iterable[TableRow], *, with_source: bool) -> Table:
    header: tuple[str, ...] = ("", "tensors", *Status, "codes %", "block scales %", "|a-b|/|b|")
    if with_source:
        header += ("error of A", "error of B")
    texts = []
    for row in rows:
        text = (
            row.key,
            str(row.tensors),
            str(row.equal_bytes),
            str(row.equal_decoded),
            str(row.differing),
            _number(row.codes_differing_percent, ".3f"),
            _number(row.block_scales_differing_percent, ".3f"),
            _number(row.relative_difference, ".4g"),
        )
        measured = (_number(row.relative_error_a, ".5f"), _number(row.relative_error_b, ".5f"))
        texts.append(text + measured if with_source else text)
    return Table(title, header, tuple(texts))


def _differences(report: CompareReport) -> Table:
    # A cause that few tensors show says more than one that all show.
    listed = sorted(report.differences, key=lambda d: (min(report.causes[c] for c in d.causes), d.tensor))[:NUM_LISTED]
    title = f"differing tensors, rare causes first ({len(listed)} of {len(report.differences)})"
    rows = tuple((d.tensor, str(d.status), ", ".join(d.causes), d.detail or NONE) for d in listed)
    return Table(title, ("tensor", "status", "causes", "detail"), rows)


def _worst(report: CompareReport) -> Table:
    rows = tuple(
        (b.tensor, str(b.row), str(b.block), f"{b.max_abs_difference:.4g}", _values(b.a), _values(b.b))
        for b in report.worst_blocks
    )
    return Table("worst blocks", ("tensor", "row", "block", "max |a-b|", "A", "B"), rows)


def _values(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:.4g}" for value in values)


def _number(value: float | None, form: str) -> str:
    return NONE if value is None else format(value, form)


def _share(part: int, whole: int) -> str:
    return f"{part} of {whole} ({100 * part / whole:.2f} %)" if whole else NONE
