"""A study's results as tables."""

from __future__ import annotations

from fourfold.errors import last_line
from fourfold.page import Table
from fourfold.study.kept import kept_table
from fourfold.study.results import CellResult, PairResult, Share, StudyResults

_CELLS = ("cell", "bytes", "factor", "verified", "as quantized", "rare experts", "seconds")
_PAIRS = ("pair", "packed weights equal", "codes differing", "block scales equal", "explained", "causes")


def study_tables(results: StudyResults) -> tuple[Table, ...]:
    """One table of cells; one of pairs and one of what each cell kept of the unquantized model, where there are any."""
    tables = [Table(results.study.name, _CELLS, tuple(_cell_row(cell) for cell in results.cells))]
    if results.pairs:
        rows = tuple(_pair_row(pair) for pair in results.pairs)
        tables.append(Table("different quantizers compared", _PAIRS, rows))
    if results.evaluations:
        tables.append(kept_table(results))
    return tuple(tables)


def _cell_row(cell: CellResult) -> tuple[str, ...]:
    if cell.status == "failed":
        return (cell.name, "-", "-", f"failed: {cell.error_type}: {last_line(cell.error)}", "-", "-", "-")
    verified = _verified(cell)
    as_quantized = {None: "-", True: "yes", False: "no"}[cell.equal_to_artifact]
    return (
        cell.name,
        f"{cell.bytes_after:,}",
        f"{cell.factor:.2f} x",
        verified,
        as_quantized,
        "-" if cell.rare_experts is None else str(cell.rare_experts),
        f"{cell.seconds:.1f}",
    )


def _verified(cell: CellResult) -> str:
    if not cell.verified:
        return f"no: {cell.findings:,} findings"
    return f"yes, {count_doubts(cell.doubts)}" if cell.doubts else "yes"


def count_doubts(doubts: int) -> str:
    """``1 doubt``, ``14 doubts``."""
    return f"{doubts:,} doubt" if doubts == 1 else f"{doubts:,} doubts"


def _pair_row(pair: PairResult) -> tuple[str, ...]:
    causes = ", ".join(f"{cause} {count:,}" for cause, count in pair.causes.items()) or "none"
    return (
        f"{pair.a}\n{pair.b}",
        _equal(pair.packed_weights),
        _percent(pair.packed_weights.differing_elements, pair.packed_weights.elements),
        _equal(pair.block_scales),
        f"{pair.explained:,} of {pair.differing:,}",
        causes,
    )


def _equal(share: Share) -> str:
    return f"{share.equal:,} of {share.tensors:,} ({_percent(share.equal, share.tensors)})"


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.2f} %" if whole else "-"
