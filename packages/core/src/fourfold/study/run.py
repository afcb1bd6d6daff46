"""Running a planned study: every cell through the pipeline, finished ones kept, failures recorded.

The output folder holds ``results.json``, ``checkpoints/CELL`` and ``stages/``. It belongs to one study, by hash.
"""

from __future__ import annotations

import fcntl
import shutil
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fourfold.environments import environment_sha256
from fourfold.errors import CheckpointError, FourfoldError, OutputError
from fourfold.manifest import MANIFEST_FILE, Manifest, sha256_file, sha256_files
from fourfold.pipeline import Pipeline, QuantizeResult, hash_source
from fourfold.plugins import Registry
from fourfold.progress import Progress
from fourfold.stages.quantize import package_versions
from fourfold.study.cells import Cell
from fourfold.study.identity import cell_identity
from fourfold.study.pairs import compare_pairs, is_equal_to_artifact
from fourfold.study.plan import StudyPlan, prepare
from fourfold.study.results import CellResult, StudyResults, count_rare_experts, read_results
from fourfold.verify import VerifyReport

LOCK_FILE = ".lock"


def run_study(plan: StudyPlan, registry: Registry, output: Path, progress: Progress) -> StudyResults:
    """Run every cell that ``output`` does not hold complete, then the comparisons; ``results.json`` follows each step.

    Raises :class:`OutputError` for a folder that is another study's, in use, or on too small a disk. A cell that
    fails is recorded, and the others run; an interruption ends the run, and the same call goes on from there.
    """
    earlier = read_results(output)
    digest = plan.study.sha256()
    if earlier is not None and earlier.study_sha256 != digest:
        raise OutputError(f"{output}: holds the study {earlier.study.name!r} as another file says it; choose another")
    output.mkdir(parents=True, exist_ok=True)
    with _alone_in(output):
        return _Run(plan, registry, output, progress, earlier).run()


@contextmanager
def _alone_in(output: Path) -> Iterator[None]:
    with (output / LOCK_FILE).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(f"{output}: another run of this study is at work there; wait for it or end it") from None
        yield


class _Run:
    def __init__(
        self, plan: StudyPlan, registry: Registry, output: Path, progress: Progress, earlier: StudyResults | None
    ) -> None:
        self._plan, self._registry, self._output, self._progress = plan, registry, output, progress
        self._source_files = hash_source(plan.model_path, progress)
        self._earlier = {cell.name: cell for cell in earlier.cells} if earlier else {}
        self._results = StudyResults(
            study=plan.study,
            study_sha256=plan.study.sha256(),
            source_files=self._source_files,
            packages=package_versions(),
            pairs=earlier.pairs if earlier else (),
        )

    def run(self) -> StudyResults:
        cells = self._plan.cells
        kept = {cell.name: self._earlier[cell.name] for cell in cells if self._is_complete(cell)}
        todo = [cell for cell in cells if cell.name not in kept]
        self._save(cells=tuple(kept.values()))
        prepare(self._plan, todo, self._output, self._progress)
        for number, cell in enumerate(cells, start=1):
            if cell.name in kept:
                self._progress.note(f"cell {number} of {len(cells)}, {cell.name}: complete, kept")
                continue
            self._progress.note(f"cell {number} of {len(cells)}, {cell.name}")
            kept[cell.name] = self._attempt(cell)
            self._save(cells=tuple(kept[c.name] for c in cells if c.name in kept))
        if self._plan.study.compare:
            self._compare()
        self._save(complete=True, ok=all(cell.ok for cell in self._results.cells))
        return self._results

    def _save(self, **changes: object) -> None:
        self._results = self._results.model_copy(update=changes)
        self._results.write(self._output)

    def _identity(self, cell: Cell) -> str:
        environment = environment_sha256(self._plan.plans[cell.name].quantizer.environment)
        return cell_identity(cell, self._source_files, environment)

    def _folder(self, cell: Cell) -> Path:
        return self._output / "checkpoints" / cell.name

    def _is_complete(self, cell: Cell) -> bool:
        """Whether an earlier run ended this cell well, out of the same things, and no file has changed since."""
        result, folder = self._earlier.get(cell.name), self._folder(cell)
        if result is None or result.status != "done" or result.identity != self._identity(cell):
            return False
        try:
            manifest = Manifest.read(folder)
            return sha256_file(folder / MANIFEST_FILE) == result.manifest_sha256 and (
                sha256_files(folder) == manifest.files
            )
        except (CheckpointError, OSError):
            return False

    def _attempt(self, cell: Cell) -> CellResult:
        start = {"name": cell.name, "identity": self._identity(cell), "config": cell.config}
        try:
            return self._run_cell(cell).model_copy(update=start)
        except FourfoldError as error:
            failure = {"error_type": type(error).__name__, "error": str(error)}
        except Exception as error:  # noqa: BLE001 - a plugin's fault must not end the cells of the others
            failure = {"error_type": type(error).__name__, "error": "".join(traceback.format_exception(error))}
        self._progress.note(f"{cell.name} failed: {failure['error'].strip().splitlines()[-1]}")
        return CellResult.model_validate({**start, "status": "failed", **failure})

    def _run_cell(self, cell: Cell) -> CellResult:
        folder = self._folder(cell)
        # What an interrupted or changed run left; the folder is ours, by the study's hash.
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        pipeline = Pipeline(
            self._plan.plans[cell.name],
            self._registry,
            self._progress,
            output=folder,
            stages=self._output / "stages",
            source_files=self._source_files,
        )
        result, report = pipeline.run()
        if pipeline.artifact_path is None:
            raise CheckpointError(f"{folder}: the pipeline ended without an artifact")
        equal = None
        if self._plan.study.compare:
            equal = is_equal_to_artifact(folder, pipeline.artifact_path, self._progress)
        return self._record(cell, result, report, pipeline.artifact_path).model_copy(
            update={"equal_to_artifact": equal}
        )

    def _record(self, cell: Cell, result: QuantizeResult, report: VerifyReport, artifact: Path) -> CellResult:
        folder = self._folder(cell)
        manifest = Manifest.read(folder)
        return CellResult(
            name=cell.name,
            status="done",
            identity=self._identity(cell),
            config=cell.config,
            checkpoint=str(folder.relative_to(self._output)),
            artifact=str(artifact.relative_to(self._output)),
            manifest_sha256=sha256_file(folder / MANIFEST_FILE),
            bytes_before=result.bytes_before,
            bytes_after=result.bytes_after,
            quantized_modules=result.quantized_modules,
            verified=result.verified,
            findings=sum(report.num_findings.values()),
            checks=sum(report.checked.values()),
            rare_experts=count_rare_experts(manifest),
            fallbacks=result.fallbacks,
            tokens_sha256=manifest.calibration.tokens_sha256 if manifest.calibration else None,
            packages=manifest.packages,
            stages=result.stages,
        )

    def _compare(self) -> None:
        done = {cell.name: cell for cell in self._results.cells if cell.status == "done"}
        cells = [cell for cell in self._plan.cells if cell.name in done]
        pairs = compare_pairs(
            cells, done, self._output, self._plan.model_path, known=self._results.pairs, progress=self._progress
        )
        finished = []
        for pair in pairs:
            finished.append(pair)
            self._save(pairs=tuple(finished))
