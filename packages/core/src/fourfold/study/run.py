"""Running a planned study: its jobs through an executor, finished cells kept, failures recorded.

The output folder holds ``results.json``, ``checkpoints/CELL``, ``evaluations/CELL`` and ``stages/``. It belongs to one
study, by its cells; whatever else the study says may change.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from fourfold.errors import OutputError, last_line
from fourfold.pipeline import Pipeline, StageTime, hash_source
from fourfold.plugins import Registry
from fourfold.progress import Progress
from fourfold.stages.store import identity_sha256
from fourfold.study.asked import Asked, discard_others, evaluation_identity, served_sha256
from fourfold.study.cells import Cell
from fourfold.study.earlier import Earlier, read_earlier
from fourfold.study.evaluation import EVALUATIONS_FOLDER, baseline_config, cell_config
from fourfold.study.executors import Executor
from fourfold.study.jobs import Job, JobKind, Outcome
from fourfold.study.pairs import compare_pairs
from fourfold.study.plan import StudyPlan, prepare, prepare_evaluation
from fourfold.study.results import LOCK_FILE, CellResult, EvaluationResult, StudyResults
from fourfold.study.schedule import Schedule
from fourfold.study.spec import BASELINE
from fourfold.versions import package_versions


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

    Raises :class:`OutputError` for a folder of other cells, or of anything else, in use, or on too small a disk, and
    :class:`ConfigError` for tasks whose prompts cannot be built. A cell that fails is recorded, and the others run; an
    interruption ends the run, and the same call goes on from there.
    """
    earlier = read_earlier(output, plan.cells, registry, progress)
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
    def __init__(self, plan: StudyPlan, registry: Registry, output: Path, progress: Progress, earlier: Earlier) -> None:
        self._plan, self._registry, self._output, self._progress = plan, registry, output, progress
        self._earlier = earlier
        self._source_files = hash_source(plan.model_path, progress)
        self._identities: dict[str, str] = {}
        self._cells: dict[str, CellResult] = {}
        self._evaluations: dict[str, EvaluationResult] = {}
        self._results = StudyResults(
            study=plan.study,
            study_sha256=plan.study.sha256(),
            source_files=self._source_files,
            packages=package_versions(),
        )

    def run(self, executor: Executor, needs: Mapping[str, Mapping[str, float]]) -> StudyResults:
        study, cells = self._plan.study, self._plan.cells
        self._cells = self._kept_cells()
        todo = [cell for cell in cells if cell.name not in self._cells]
        schedule = Schedule(self._plan, self._output, self._source_files, self._identity, needs)
        schedule.run_cells(todo)
        asked = self._asked()
        self._evaluations = self._kept_evaluations(asked, {cell.name for cell in todo})
        self._schedule_evaluations(schedule)
        if not self._earlier.is_there:
            self._save()  # the folder is this study's from here on; what stands in another is left until all is checked
        prepare(self._plan, todo, self._output, self._progress)
        if any(job.kind is JobKind.EVALUATE for job in schedule.jobs):
            prepare_evaluation(self._plan, self._registry, self._progress)
        for name in asked.keys() - self._evaluations.keys():
            discard_others(self._evaluation_folder(name), asked[name], whoever_answers=True)
        self._save(pairs=self._earlier.pairs_of(self._cells) if study.compare else ())
        self._perform(schedule.jobs, executor)
        if study.compare:
            self._compare()
        evaluated = all(evaluation.status == "done" for evaluation in self._results.evaluations)
        self._save(complete=True, ok=evaluated and all(cell.ok for cell in self._results.cells))
        return self._results

    def _kept_cells(self) -> dict[str, CellResult]:
        kept = {}
        for cell in self._plan.cells:
            found = self._earlier.cell(cell.name, self._identity(cell), compare=self._plan.study.compare)
            if found is not None:
                kept[cell.name] = found
        self._note_kept(kept)
        return kept

    def _asked(self) -> dict[str, Asked]:
        """By name, what the baseline and every cell is asked; none without an evaluation."""
        study, output = self._plan.study, self._output
        if study.evaluate is None:
            return {}
        config = baseline_config(study, self._plan.model_path, output)
        asked = {BASELINE: evaluation_identity(config, self._registry, self._source_files)}
        for cell in self._plan.cells:
            served = served_sha256(cell_config(study, cell.name, output), self._registry, self._source_files)
            asked[cell.name] = asked[BASELINE].model_copy(update={"served": served})
        return asked

    def _kept_evaluations(self, asked: Mapping[str, Asked], running: set[str]) -> dict[str, EvaluationResult]:
        """Every evaluation that stands as an earlier run ended it, but those of cells that run: they are asked again
        for what they miss. None where the baseline's is missing: its answers are what the others were compared with.
        """
        stands = {name: self._earlier.evaluation(name, asked[name]) for name in asked if name not in running}
        kept = {name: found for name, found in stands.items() if found is not None}
        if BASELINE not in kept:
            return {}
        self._note_kept([f"{JobKind.EVALUATE} {name}" for name in kept])
        return kept

    def _schedule_evaluations(self, schedule: Schedule) -> None:
        if self._plan.study.evaluate is not None:
            missing = [cell for cell in self._plan.cells if cell.name not in self._evaluations]
            schedule.evaluate(missing, baseline=BASELINE not in self._evaluations)

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
            identity=outcome.identity,
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
                output=self._output / "checkpoints" / cell.name,
                source_files=self._source_files,
            )
            self._identities[cell.name] = identity_sha256(pipeline.identity())
        return self._identities[cell.name]

    def _evaluation_folder(self, name: str) -> Path:
        return self._output / EVALUATIONS_FOLDER / name

    def _compare(self) -> None:
        done = {cell.name: cell for cell in self._results.cells if cell.status == "done"}
        cells = [cell for cell in self._plan.cells if cell.name in done]
        pairs = compare_pairs(
            cells, done, self._output, self._plan.model_path, known=self._earlier.pairs, progress=self._progress
        )
        finished = []
        for pair in pairs:
            finished.append(pair)
            self._save(pairs=tuple(finished))
        self._save(pairs=tuple(finished))


def _times(stages: list[StageTime]) -> tuple[StageTime, ...]:
    """One time a stage: where it was really run, if it was."""
    found: dict[str, StageTime] = {}
    for stage in stages:
        if stage.name not in found or found[stage.name].reused:
            found[stage.name] = stage
    return tuple(found.values())
