"""Running a planned study: its jobs through an executor, finished cells kept, failures recorded.

The output folder holds ``results.json``, ``checkpoints/CELL`` and ``stages/``. It belongs to one study, by hash.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from fourfold.environments import environment_sha256
from fourfold.errors import CheckpointError, OutputError
from fourfold.manifest import MANIFEST_FILE, Manifest, sha256_file, sha256_files
from fourfold.pipeline import StageTime, hash_source
from fourfold.progress import Progress
from fourfold.stages.quantize import package_versions
from fourfold.study.cells import Cell
from fourfold.study.executors import Executor
from fourfold.study.identity import cell_identity
from fourfold.study.jobs import Job, JobKind, Outcome, plan_jobs
from fourfold.study.pairs import compare_pairs
from fourfold.study.plan import StudyPlan, prepare
from fourfold.study.results import CellResult, StudyResults, read_results

LOCK_FILE = ".lock"


def run_study(
    plan: StudyPlan,
    executor: Executor,
    output: Path,
    progress: Progress,
    *,
    needs: Mapping[str, Mapping[str, float]] | None = None,
) -> StudyResults:
    """Run every cell that ``output`` does not hold complete, then the comparisons; ``results.json`` follows each step.

    ``needs`` changes what jobs of a kind take of a machine (:func:`fourfold.study.jobs.parse_needs`).

    Raises :class:`OutputError` for a folder that is another study's, in use, or on too small a disk. A cell that
    fails is recorded, and the others run; an interruption ends the run, and the same call goes on from there.
    """
    earlier = read_results(output)
    digest = plan.study.sha256()
    if earlier is not None and earlier.study_sha256 != digest:
        raise OutputError(f"{output}: holds the study {earlier.study.name!r} as another file says it; choose another")
    output.mkdir(parents=True, exist_ok=True)
    with _alone_in(output):
        return _Run(plan, output, progress, earlier).run(executor, needs or {})


@contextmanager
def _alone_in(output: Path) -> Iterator[None]:
    with (output / LOCK_FILE).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(f"{output}: another run of this study is at work there; wait for it or end it") from None
        yield


class _Run:
    def __init__(self, plan: StudyPlan, output: Path, progress: Progress, earlier: StudyResults | None) -> None:
        self._plan, self._output, self._progress = plan, output, progress
        self._source_files = hash_source(plan.model_path, progress)
        self._earlier = {cell.name: cell for cell in earlier.cells} if earlier else {}
        self._results = StudyResults(
            study=plan.study,
            study_sha256=plan.study.sha256(),
            source_files=self._source_files,
            packages=package_versions(),
            pairs=earlier.pairs if earlier else (),
        )

    def run(self, executor: Executor, needs: Mapping[str, Mapping[str, float]]) -> StudyResults:
        cells = self._plan.cells
        done = {cell.name: self._earlier[cell.name] for cell in cells if self._is_complete(cell)}
        for name in done:
            self._progress.note(f"{name}: complete, kept")
        todo = [cell for cell in cells if cell.name not in done]
        self._save(cells=tuple(done.values()))
        prepare(self._plan, todo, self._output, self._progress)
        jobs = plan_jobs(todo, self._plan.plans, self._job, needs)
        for result in self._results_of(jobs, executor):
            done[result.name] = result
            self._save(cells=tuple(done[c.name] for c in cells if c.name in done))
        if self._plan.study.compare:
            self._compare()
        self._save(complete=True, ok=all(cell.ok for cell in self._results.cells))
        return self._results

    def _job(self, cell: Cell, **what: object) -> Job:
        return Job.model_validate(
            {
                "cell": cell.name,
                "identity": self._identity(cell),
                "config": cell.config,
                "output": str(self._output.absolute()),
                "source_files": self._source_files,
                "compare": self._plan.study.compare,
                **what,
            }
        )

    def _results_of(self, jobs: tuple[Job, ...], executor: Executor) -> Iterator[CellResult]:
        """Cells as they end. Each gets the times of the stages that were run for it and no cell before it."""
        by_name = {job.name: job for job in jobs}
        unclaimed: dict[str, tuple[StageTime, ...]] = {}
        for outcome in executor.run(jobs, self._progress):
            job = by_name[outcome.job]
            if job.kind is not JobKind.CELL:
                earlier = [unclaimed.pop(name, ()) for name in job.after]
                unclaimed[job.name] = _times([*sum(earlier, ()), *outcome.stages])
                continue
            result = outcome.result or self._failure(job, outcome)
            ran = unclaimed.pop(job.after[0], ())
            yield result.model_copy(update={"stages": _times([*ran, *result.stages])})

    def _failure(self, job: Job, outcome: Outcome) -> CellResult:
        self._progress.note(f"{job.cell} failed: {(outcome.error or '').strip().splitlines()[-1]}")
        return CellResult(
            name=job.cell,
            status="failed",
            identity=job.identity,
            config=job.config,
            error_type=outcome.error_type,
            error=outcome.error,
        )

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


def _times(stages: list[StageTime]) -> tuple[StageTime, ...]:
    """One time a stage: where it was really run, if it was."""
    found: dict[str, StageTime] = {}
    for stage in stages:
        if stage.name not in found or found[stage.name].reused:
            found[stage.name] = stage
    return tuple(found.values())
