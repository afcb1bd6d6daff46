"""What an earlier run left in a study's folder: whose it is, and what of it still stands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from fourfold.errors import FourfoldError, OutputError
from fourfold.manifest import MANIFEST_FILE, Manifest, sha256_file, sha256_files
from fourfold.plugins import Registry
from fourfold.progress import Progress
from fourfold.study.asked import Asked, holds
from fourfold.study.cells import Cell, expand
from fourfold.study.pairs import is_equal_to_artifact
from fourfold.study.results import CellResult, EvaluationResult, PairResult, StudyResults, read_results
from fourfold.verify.record import may_be_added


class Earlier:
    """The results of an earlier run in ``output``, of which only what still stands is given."""

    def __init__(self, output: Path, results: StudyResults | None, progress: Progress) -> None:
        self._output, self._progress = output, progress
        self.is_there = results is not None
        self.pairs: tuple[PairResult, ...] = results.pairs if results else ()
        self._cells = {cell.name: cell for cell in results.cells} if results else {}
        self._evaluations = {evaluation.name: evaluation for evaluation in results.evaluations} if results else {}

    def cell(self, name: str, identity: str, *, compare: bool) -> CellResult | None:
        """The cell, where it ended well, out of the same things, and no file has changed since; a card or licence
        beside them is as right to the verifier as it is here. With ``compare`` it is compared with its artifact now
        where it was not then; where that cannot be, it must run again.
        """
        result, folder = self._cells.get(name), self._output / "checkpoints" / name
        if result is None or result.status != "done" or result.identity != identity:
            return None
        try:
            manifest = Manifest.read(folder)
            found = sha256_files(folder)
            counted = {file: found[file] for file in found if file in manifest.files or not may_be_added(file)}
            if sha256_file(folder / MANIFEST_FILE) != result.manifest_sha256 or counted != manifest.files:
                return None
            if compare and result.equal_to_artifact is None and result.artifact is not None:
                equal = is_equal_to_artifact(folder, self._output / result.artifact, self._progress)
                return result.model_copy(update={"equal_to_artifact": equal})
        except (FourfoldError, OSError):
            return None
        return result

    def evaluation(self, name: str, asked: Asked) -> EvaluationResult | None:
        """The evaluation, where it ended well, the same is asked now, and its folder holds it."""
        found = self._evaluations.get(name)
        if found is None or found.record is None or found.identity != asked.sha256():
            return None
        return found if holds(self._output / found.folder, asked, found.record) else None

    def pairs_of(self, cells: Mapping[str, CellResult]) -> tuple[PairResult, ...]:
        """The pairs whose checkpoints are those of ``cells``."""
        sha256 = {name: cell.manifest_sha256 for name, cell in cells.items()}
        return tuple(
            pair
            for pair in self.pairs
            if (sha256.get(pair.a), sha256.get(pair.b)) == (pair.a_manifest_sha256, pair.b_manifest_sha256)
        )


def read_earlier(output: Path, cells: Sequence[Cell], registry: Registry, progress: Progress) -> Earlier:
    """What stands in ``output``, if it is that of a study of the same cells. What the study asks of them, whether it
    compares them, and what it is called may have changed.

    Raises :class:`OutputError` for a folder of other cells, or of anything else.
    """
    results = read_results(output)
    if results is not None:
        then, now = _configs(expand(results.study, registry)[0]), _configs(cells)
        other = sorted(name for name in then.keys() | now.keys() if then.get(name) != now.get(name))
        if other:
            raise OutputError(
                f"{output}: holds the study {results.study.name!r} with other cells (such as {other[0]}); "
                "choose another folder"
            )
    return Earlier(output, results, progress)


def _configs(cells: Sequence[Cell]) -> dict[str, str]:
    return {cell.name: cell.config.canonical_json() for cell in cells}
