"""One model's tasks into one folder: serve where something is missing, ask, score, measure."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

from fourfold.errors import EvaluationError, OutputError
from fourfold.evaluate.answers import AnswerFile
from fourfold.evaluate.ask import answer_missing
from fourfold.evaluate.folder import claim
from fourfold.evaluate.prepare import PreparedTask, measurement_job
from fourfold.evaluate.request import EvalConfig
from fourfold.evaluate.score import task_result
from fourfold.evaluate.target import ModelSource, server_version
from fourfold.interfaces.benchmark import Answer, MeasurementJob, Target
from fourfold.interfaces.server import Endpoint
from fourfold.plugins import Registry
from fourfold.progress import Progress
from fourfold.results import EVAL_FILE, RESPONSES_FOLDER, EvalRecord, ModelRecord, TaskResult


class ModelRun:
    """One model's tasks into one folder."""

    def __init__(
        self, config: EvalConfig, source: ModelSource, folder: Path, registry: Registry, progress: Progress
    ) -> None:
        self._config, self._source, self._folder = config, source, folder
        self._registry, self._progress = registry, progress
        #: What an earlier run of the same command found: all that is known where nothing is left to ask.
        self._before = EvalRecord.load(folder) if (folder / EVAL_FILE).is_file() else None

    def run(
        self, tasks: tuple[PreparedTask, ...], reference: Path | None
    ) -> tuple[ModelRecord, tuple[TaskResult, ...]]:
        """Serve where something is missing, ask, score."""
        record = self._source.record()
        claim(self._folder, record, self._config.seed)
        self._require_every_task(task.planned.name for task in tasks)
        files = {task.planned.name: self._answers(task) for task in tasks if task.measurement is None}
        # Of every task, not up to the first: what makes one impossible is said before another is asked.
        to_ask = [task for task in tasks if self._must_be_asked(task, files, reference)]
        with ExitStack() as stack:
            endpoint: Endpoint | None = None
            if to_ask:
                endpoint = stack.enter_context(self._source.serve(self._registry, self._progress))
                served = {"served_model": endpoint.model, "server_version": server_version(endpoint)}
                record = record.model_copy(update=served)
            elif self._before is not None:
                before = self._before.model
                served = {"served_model": before.served_model, "server_version": before.server_version}
                record = record.model_copy(update=served)
            results = []
            for task in tasks:
                if task.measurement is not None:
                    results.append(self._measure(task, endpoint, reference))
                else:
                    results.append(self._ask(task, files[task.planned.name], endpoint))
        return record, tuple(results)

    def _require_every_task(self, names: Iterable[str]) -> None:
        """The record is written anew, so a task that is not asked for would be gone from it."""
        asked = set(names)
        if left := [task.task for task in self._before.tasks if task.task not in asked] if self._before else []:
            raise OutputError(
                f"{self._folder}: was evaluated on {', '.join(left)} too; name that in --tasks as well (its answers "
                "are kept), or choose another --output"
            )

    def _must_be_asked(self, task: PreparedTask, files: dict[str, AnswerFile], reference: Path | None) -> bool:
        if task.measurement is not None:
            return task.measurement.needs_endpoint(self._job(task, None, reference))
        return bool(files[task.planned.name].missing)

    def _answers(self, task: PreparedTask) -> AnswerFile:
        path = self._folder / RESPONSES_FOLDER / f"{task.planned.file}.jsonl"
        return AnswerFile(path, task.prompts, self._config.repeats)

    def _ask(self, task: PreparedTask, answers: AnswerFile, endpoint: Endpoint | None) -> TaskResult:
        if task.host is None:
            raise EvaluationError(f"task {task.planned.name}: nothing scores it")
        begin, asked = time.monotonic(), False
        if endpoint is not None and answers.missing:
            asked = True
            answer_missing(
                answers,
                endpoint,
                label=f"{self._source.name}: {task.planned.name}",
                seed=self._config.seed,
                concurrency=self._config.concurrency,
                timeout_s=self._config.timeout_s,
                progress=self._progress,
            )
        seconds = self._seconds(task, begin, asked=asked)
        scores = [
            task.host.score(
                [
                    Answer(prompt=record.prompt, text=record.text, finish_reason=record.finish_reason)
                    for record in answers.of_repeat(repeat)
                ]
            )
            for repeat in range(self._config.repeats)
        ]
        answers.write_scored([repeat.prompts for repeat in scores])
        return task_result(task.planned, task.prompts, answers, scores, seed=self._config.seed, seconds=seconds)

    def _job(self, task: PreparedTask, endpoint: Endpoint | None, reference: Path | None) -> MeasurementJob:
        target = Target(
            name=self._source.name,
            endpoint=endpoint,
            checkpoint=self._source.checkpoint,
            server=self._source.make_server(self._registry),
        )
        return measurement_job(task.planned, self._config, target, self._folder, reference)

    def _seconds(self, task: PreparedTask, begin: float, *, asked: bool) -> float:
        """Since ``begin``; what it took when it was asked, where nothing was asked now."""
        before = self._before.task(task.planned.name) if self._before else None
        return before.seconds if before and not asked else round(time.monotonic() - begin, 3)

    def _measure(self, task: PreparedTask, endpoint: Endpoint | None, reference: Path | None) -> TaskResult:
        if task.measurement is None:
            raise EvaluationError(f"task {task.planned.name}: nothing measures it")
        begin = time.monotonic()
        measured = task.measurement.measure(self._job(task, endpoint, reference), self._progress)
        return TaskResult(
            task=task.planned.name,
            label=task.planned.name,
            benchmark=task.planned.entry.name,
            options=task.planned.options_json,
            prompts=measured.prompts,
            scored=measured.prompts,
            prompts_sha256=measured.prompts_sha256,
            seeds=(self._config.seed,),
            metrics=measured.metrics,
            seconds=self._seconds(task, begin, asked=endpoint is not None),
            details=dict(measured.details),
        )
