"""Cells of different quantizers against each other, and every checkpoint against its own artifact.

Cells that differ in layout only have one quantize stage, whose codes and block scales every exporter moves byte for
byte (that is what :func:`is_equal_to_artifact` sees to), so one of them is compared and stands for the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path

from fourfold.artifact import BLOCK_SCALE, PACKED_WEIGHT
from fourfold.compare import CompareReport, Level, compare
from fourfold.errors import CheckpointError
from fourfold.progress import Progress
from fourfold.study.cells import Cell
from fourfold.study.results import CellResult, PairResult, Share


def is_equal_to_artifact(checkpoint: Path, artifact: Path, progress: Progress) -> bool:
    """Whether the checkpoint stores what its quantizer claimed, tensor by tensor, to the byte."""
    return compare(artifact, checkpoint, level=Level.BYTES, progress=progress).equal


def compare_pairs(
    cells: Sequence[Cell],
    results: Mapping[str, CellResult],
    output: Path,
    source: Path,
    *,
    known: Sequence[PairResult],
    progress: Progress,
) -> Iterator[PairResult]:
    """One result a pair of quantize stages of different quantizers; those of ``known`` that still hold are kept."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.stage_key, []).append(cell)
    earlier = {(p.a, p.b, p.a_manifest_sha256, p.b_manifest_sha256): p for p in known}
    for group_a, group_b in combinations(groups.values(), 2):
        a, b = group_a[0], group_b[0]
        if a.config.quantizer.name == b.config.quantizer.name:
            continue
        hashes = [_manifest_sha256(results[cell.name]) for cell in (a, b)]
        found = earlier.get((a.name, b.name, hashes[0], hashes[1]))
        others = tuple(cell.name for cell in (*group_a[1:], *group_b[1:]))
        if found is None:
            progress.note(f"compare {a.name} with {b.name}")
            folders = [output / "checkpoints" / cell.name for cell in (a, b)]
            report = compare(*folders, level=Level.BYTES, source=source, progress=progress)
            found = _result(a, b, hashes, others, report)
        yield found.model_copy(update={"stands_for": others})


def _manifest_sha256(result: CellResult) -> str:
    if result.manifest_sha256 is None:
        raise CheckpointError(f"{result.name}: no manifest, though its cell is done")
    return result.manifest_sha256


def _result(a: Cell, b: Cell, hashes: list[str], others: tuple[str, ...], report: CompareReport) -> PairResult:
    return PairResult(
        a=a.name,
        b=b.name,
        a_manifest_sha256=hashes[0],
        b_manifest_sha256=hashes[1],
        stands_for=others,
        packed_weights=_share(report, PACKED_WEIGHT),
        block_scales=_share(report, BLOCK_SCALE),
        causes=report.causes,
        differing=report.rules.differing if report.rules else 0,
        explained=report.rules.explained if report.rules else 0,
    )


def _share(report: CompareReport, part: str) -> Share:
    """Of modules quantized on both sides; all zero where there is none."""
    counts = report.parts.get(part)
    if counts is None:
        return Share(tensors=0, equal=0, elements=0, differing_elements=0)
    return Share(**counts.model_dump())
