"""Running a planned study: its jobs through an executor, finished cells kept, failures recorded.

The output folder holds ``results.json``, ``checkpoints/CELL``, ``evaluations/CELL`` and ``stages/``. It belongs to one
study, by hash.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from fourfold.errors import CheckpointError, OutputError, last_line
from fourfold.manifest import MANIFEST_FILE, Manifest, sha256_file, sha256_files
from fourfold.pipeline import Pipeline, StageTime, hash_source
from fourfold.plugins import Registry
from fourfold.progress import Progress
from fourfold.stages.store import identity_sha256
from fourfold.study.cells import Cell
from fourfold.study.evaluation import EVALUATIONS_FOLDER, baseline_config, cell_config, evaluation_identity
from fourfold.study.executors import Executor
from fourfold.study.jobs import Job, JobKind, Outcome
from fourfold.study.pairs import compare_pairs
from fourfold.study.plan import StudyPlan, prepare
from fourfold.study.results import CellResult, EvaluationResult, StudyResults, read_results
from fourfold.study.schedule import Schedule
from fourfold.study.spec import BASELINE
from fourfold.verify.record import may_be_added
from fourfold.versions import package_versions

LOCK_FILE = ".lock"


def run_study(
    plan: StudyPlan,
    registry: Registry,
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
        return _Run(plan, registry, output, progress, earlier).run(executor, needs or {})


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
        self._before = earlier.evaluations if earlier else ()
        self._identities: dict[str, str] = {}
        self._cells: dict[str, CellResult] = {}
        self._evaluations: dict[str, EvaluationResult] = {}
        self._results = StudyResults(
            study=plan.study,
            study_sha256=plan.study.sha256(),
            source_files=self._source_files,
            packages=package_versions(),
            pairs=earlier.pairs if earlier else (),
        )

    def run(self, executor: Executor, needs: Mapping[str, Mapping[str, float]]) -> StudyResults:
        cells = self._plan.cells
        self._cells = {cell.name: self._earlier[cell.name] for cell in cells if self._is_complete(cell)}
        self._note_kept(self._cells)
        todo = [cell for cell in cells if cell.name not in self._cells]
        schedule = Schedule(self._plan, self._output, self._source_files, self._identity, needs)
        schedule.run_cells(todo)
        self._schedule_evaluations(schedule, {cell.name for cell in todo})
        self._save()
        prepare(self._plan, todo, self._output, self._progress)
        self._perform(schedule.jobs, executor)
        if self._plan.study.compare:
            self._compare()
        evaluated = all(evaluation.status == "done" for evaluation in self._results.evaluations)
        self._save(complete=True, ok=evaluated and all(cell.ok for cell in self._results.cells))
        return self._results

    def _schedule_evaluations(self, schedule: Schedule, running: set[str]) -> None:
        """Every evaluation that does not stand as an earlier run ended it; those of cells that run are asked again for
        what they miss.
        """
        if self._plan.study.evaluate is None:
            return
        earlier = {evaluation.name: evaluation for evaluation in self._before}
        names = (BASELINE, *(cell.name for cell in self._plan.cells))
        for name in names:
            found = earlier.get(name)
            if name not in running and found and found.status == "done" and found.identity == self._asked(name):
                self._evaluations[name] = found
        self._note_kept([f"{JobKind.EVALUATE} {name}" for name in self._evaluations])
        missing = [cell for cell in self._plan.cells if cell.name not in self._evaluations]
        schedule.evaluate(missing, baseline=BASELINE not in self._evaluations)

    def _asked(self, name: str) -> str:
        study, output = self._plan.study, self._output
        config = (
            baseline_config(study, self._plan.model_path, output)
            if name == BASELINE
            else cell_config(study, name, output)
        )
        return evaluation_identity(config, self._registry, self._source_files)

    def _note_kept(self, names: Iterable[str]) -> None:
        for name in names:
            self._progress.note(f"{name}: complete, kept")

    def _perform(self, jobs: tuple[Job, ...], executor: Executor) -> None:
        """Record every cell and evaluation as it ends. A cell gets the times of the stages that ran for it, and for no
        cell before it.
        """
        by_name = {job.name: job for job in jobs}
        unclaimed: dict[str, tuple[StageTime, ...]] = {}
        for outcome in executor.run(jobs, self._progress):
            job = by_name[outcome.job]
            if not outcome.ok:
                self._progress.note(f"{job.name} failed: {last_line(outcome.error)}")
            if job.kind is JobKind.EVALUATE:
                self._evaluations[job.cell] = self._evaluated(job, outcome)
            else:
                ran = [stage for name in job.after for stage in unclaimed.pop(name, ())]
                unclaimed[job.name] = _times([*ran, *outcome.stages])
            if job.kind is JobKind.CELL:
                result = outcome.result or self._failure(job, outcome)
                times = _times([*unclaimed.pop(job.name), *result.stages])
                self._cells[job.cell] = result.model_copy(update={"stages": times})
            self._save()

    def _evaluated(self, job: Job, outcome: Outcome) -> EvaluationResult:
        return EvaluationResult(
            name=job.cell,
            status="done" if outcome.ok else "failed",
            identity=self._asked(job.cell) if outcome.ok else None,
            folder=f"{EVALUATIONS_FOLDER}/{job.cell}",
            record=outcome.record,
            error_type=outcome.error_type,
            error=outcome.error,
        )

    def _failure(self, job: Job, outcome: Outcome) -> CellResult:
        return CellResult(
            name=job.cell,
            status="failed",
            identity=job.identity,
            config=job.config,
            error_type=outcome.error_type,
            error=outcome.error,
        )

    def _save(self, **changes: object) -> None:
        cells = tuple(self._cells[c.name] for c in self._plan.cells if c.name in self._cells)
        names = (BASELINE, *(cell.name for cell in self._plan.cells))
        evaluations = tuple(self._evaluations[name] for name in names if name in self._evaluations)
        self._results = self._results.model_copy(update={"cells": cells, "evaluations": evaluations, **changes})
        self._results.write(self._output)

    def _identity(self, cell: Cell) -> str:
        """Hash of all that decides the cell, as it is when the study starts."""
        if cell.name not in self._identities:
            pipeline = Pipeline(
                self._plan.plans[cell.name],
                self._registry,
                self._progress,
                output=self._folder(cell),
                source_files=self._source_files,
            )
            self._identities[cell.name] = identity_sha256(pipeline.identity())
        return self._identities[cell.name]

    def _folder(self, cell: Cell) -> Path:
        return self._output / "checkpoints" / cell.name

    def _is_complete(self, cell: Cell) -> bool:
        """Whether an earlier run ended this cell well, out of the same things, and no file has changed since; a card or
        licence beside them is as right to the verifier as it is here.
        """
        result, folder = self._earlier.get(cell.name), self._folder(cell)
        if result is None or result.status != "done" or result.identity != self._identity(cell):
            return False
        try:
            manifest = Manifest.read(folder)
            found = sha256_files(folder)
            counted = {name: found[name] for name in found if name in manifest.files or not may_be_added(name)}
            return sha256_file(folder / MANIFEST_FILE) == result.manifest_sha256 and counted == manifest.files
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
