"""A task made ready before any server starts: its prompts, or the measurement that will look for itself."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fourfold.checkpoint.atomic import make_folder
from fourfold.config import Config
from fourfold.environments import ensure_environment
from fourfold.evaluate.answers import prompts_sha256
from fourfold.evaluate.folder import LOGS_FOLDER, MEASUREMENTS_FOLDER
from fourfold.evaluate.request import EvalConfig
from fourfold.evaluate.tasks import PlannedTask
from fourfold.interfaces.benchmark import (
    Answer,
    BenchmarkJob,
    Measurement,
    MeasurementJob,
    Prompt,
    PromptBenchmark,
    Scores,
    Target,
)
from fourfold.plugins import Registry, Role
from fourfold.progress import Progress
from fourfold.stages.benchmark import AnswerList, BenchmarkRequest, PromptList
from fourfold.stages.process import run_in_process


@dataclass(frozen=True, kw_only=True)
class PreparedTask:
    """Either ``prompts`` to ask or a ``measurement``; ``host`` builds and scores the prompts."""

    planned: PlannedTask
    prompts: tuple[Prompt, ...] = ()
    measurement: Measurement[Any] | None = None
    host: BenchmarkHost | None = None

    @property
    def prompts_sha256(self) -> str | None:
        """Of the prompts; None for a measurement, which tells afterwards."""
        return None if self.measurement else prompts_sha256(self.prompts)


class BenchmarkHost:
    """Runs a prompt benchmark where it lives: here, or in its environment by a process of its own, which asks the hub
    for nothing where it is ``offline``.
    """

    def __init__(
        self, task: PlannedTask, config: EvalConfig, registry: Registry, progress: Progress, *, offline: bool
    ) -> None:
        self._task, self._registry, self._progress, self._offline = task, registry, progress, offline
        self._job, self._logs = benchmark_job(task, config), config.output / LOGS_FOLDER

    def prompts(self) -> tuple[Prompt, ...]:
        """Every prompt of the task."""
        if self._task.entry.environment is None:
            return tuple(self._load().prompts(self._job))
        return PromptList.model_validate_json(self._stage("prompts", None)).prompts

    def score(self, answers: Sequence[Answer]) -> Scores:
        """The scores of one answer to each prompt."""
        if self._task.entry.environment is None:
            return self._load().score(self._job, answers)
        return Scores.model_validate_json(self._stage("scores", AnswerList(answers=tuple(answers))))

    def _load(self) -> PromptBenchmark[Any]:
        made: PromptBenchmark[Any] = self._registry.load(Role.BENCHMARK, self._task.entry.name)(self._task.options)
        return made

    def _stage(self, what: str, answers: Config | None) -> bytes:
        python = ensure_environment(self._task.entry.environment, self._progress)
        make_folder(self._logs)
        log = self._logs / f"{self._task.file}-{what}.log"
        with tempfile.TemporaryDirectory(prefix="fourfold-benchmark-") as folder:
            given = Path(folder) / "answers.json"
            if answers is not None:
                given.write_text(answers.model_dump_json(), encoding="utf-8")
            request = BenchmarkRequest(
                name=self._task.entry.name,
                options=self._task.options_json,
                job=self._job,
                answers=given if answers is not None else None,
                output=Path(folder) / f"{what}.json",
            )
            # Unlike a quantizer, a benchmark may fetch its data: a stage's rule of no network does not hold here.
            variables = {"HF_HUB_OFFLINE": "1" if self._offline else os.environ.get("HF_HUB_OFFLINE", "0")}
            run_in_process(python, request, log, self._progress, variables)
            return request.output.read_bytes()


def prepare(
    tasks: Sequence[PlannedTask], config: EvalConfig, registry: Registry, progress: Progress
) -> tuple[PreparedTask, ...]:
    """Build every task's prompts; what is wrong with a task or its data is said here."""
    return tuple(prepare_task(task, config, registry, progress) for task in tasks)


def prepare_task(
    task: PlannedTask, config: EvalConfig, registry: Registry, progress: Progress, *, offline: bool = False
) -> PreparedTask:
    """One task's prompts. ``offline`` keeps a benchmark that has a process of its own from the hub, so that
    :class:`fourfold.errors.UnreachableDataError` may mean no more than that.
    """
    if task.entry.environment is None:
        made = registry.load(Role.BENCHMARK, task.entry.name)
        if issubclass(made, Measurement):
            return PreparedTask(planned=task, measurement=made(task.options))
    host = BenchmarkHost(task, config, registry, progress, offline=offline)
    return PreparedTask(planned=task, prompts=host.prompts(), host=host)


def benchmark_job(task: PlannedTask, config: EvalConfig) -> BenchmarkJob:
    """What the task's benchmark is asked for."""
    data = config.data.absolute() if config.data else None
    return BenchmarkJob(limit=config.limit_of(task.name), data=data, seed=config.seed)


def measurement_job(
    task: PlannedTask, config: EvalConfig, target: Target, folder: Path, reference: Path | None
) -> MeasurementJob:
    """A measurement of ``target``, whose evaluation is in ``folder``; ``reference`` is the folder of the baseline's."""
    return MeasurementJob(
        target=target,
        folder=folder / MEASUREMENTS_FOLDER / task.file,
        reference=reference / MEASUREMENTS_FOLDER / task.file if reference else None,
        limit=config.limit_of(task.name),
        data=config.data,
        seed=config.seed,
        concurrency=config.concurrency,
        timeout_s=config.timeout_s,
    )
