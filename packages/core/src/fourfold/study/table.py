"""A study's results as tables."""

from __future__ import annotations

from fourfold.compare import Table
from fourfold.study.results import CellResult, PairResult, Share, StudyResults

_CELLS = ("cell", "bytes", "factor", "verified", "as quantized", "rare experts", "seconds")
_PAIRS = ("pair", "packed weights equal", "codes differing", "block scales equal", "explained", "causes")


def study_tables(results: StudyResults) -> tuple[Table, ...]:
    """One table of cells; one of pairs where there are any."""
    cells = Table(results.study.name, _CELLS, tuple(_cell_row(cell) for cell in results.cells))
    if not results.pairs:
        return (cells,)
    return cells, Table("different quantizers compared", _PAIRS, tuple(_pair_row(pair) for pair in results.pairs))


def _cell_row(cell: CellResult) -> tuple[str, ...]:
    if cell.status == "failed":
        last = (cell.error or "").strip().splitlines()[-1]
        return (cell.name, "-", "-", f"failed: {cell.error_type}: {last}", "-", "-", "-")
    verified = "yes" if cell.verified else f"no: {cell.findings:,} findings"
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
