"""One evaluation: prompts first, then the baseline, then the model, each served once, then what they come to.

Whatever was answered stays: the same command asks only what is missing, and serves nothing when nothing is.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path

from fourfold.errors import ConfigError
from fourfold.evaluate.client import is_url
from fourfold.evaluate.compare import compare_records, require_same_prompts
from fourfold.evaluate.folder import write_record
from fourfold.evaluate.model_run import ModelRun
from fourfold.evaluate.prepare import PreparedTask, prepare
from fourfold.evaluate.request import EvalConfig
from fourfold.evaluate.target import ModelSource, find_source, git_revision, this_machine
from fourfold.evaluate.tasks import plan_tasks
from fourfold.plugins import Registry
from fourfold.progress import Progress
from fourfold.results import BASELINE_FOLDER, EVAL_FILE, EvalRecord, ModelRecord, TaskResult
from fourfold.versions import ASKING, package_versions


def evaluate(config: EvalConfig, registry: Registry, progress: Progress) -> EvalRecord:
    """Evaluate, compare, write ``output``/eval.json and return it."""
    clock = _Clock()
    if config.data is not None and not config.data.is_dir():
        raise ConfigError(f"--data {config.data}: not a folder")
    if config.served_model is not None and not any(map(is_url, filter(None, (config.model, config.baseline)))):
        raise ConfigError(
            "--served-model-name: says which model of a server to ask; fourfold serves a folder under its own name"
        )
    planned = plan_tasks(config.tasks, config.options, registry)
    source = _source(config, config.model, registry)
    baseline = _Baseline(config, registry)
    tasks = prepare(planned, config, registry, progress)
    reference = baseline.evaluate(tasks, progress)
    model, results = ModelRun(config, source, config.output, registry, progress).run(
        tasks, baseline.folder if reference else None
    )
    record = _record(config, clock, model, results)
    if reference is not None:
        comparisons = compare_records(reference, baseline.folder, results, config.output, config.seed)
        record = record.model_copy(update={"baseline": reference.model, "comparisons": comparisons})
    write_record(record, config.output)
    return record


class _Clock:
    """When a run began, and how long it has taken."""

    def __init__(self) -> None:
        self.started = datetime.now(UTC).isoformat(timespec="seconds")
        self._begin = time.monotonic()

    @property
    def seconds(self) -> float:
        return round(time.monotonic() - self._begin, 3)


def _record(config: EvalConfig, clock: _Clock, model: ModelRecord, results: tuple[TaskResult, ...]) -> EvalRecord:
    return EvalRecord(
        model=model,
        machine=this_machine(),
        packages=package_versions(ASKING),
        git_revision=git_revision(),
        started=clock.started,
        seconds=clock.seconds,
        concurrency=config.concurrency,
        limit=config.limit,
        limits=config.limits,
        repeats=config.repeats,
        seed=config.seed,
        tasks=results,
    )


def _source(config: EvalConfig, given: str, registry: Registry) -> ModelSource:
    return find_source(
        given,
        registry,
        server=config.server,
        server_options=config.server_options,
        served_model=config.served_model if is_url(given) else None,
    )


class _Baseline:
    """The baseline as it was given: nothing, a finished evaluation, or a model to evaluate first."""

    def __init__(self, config: EvalConfig, registry: Registry) -> None:
        self._config, self._registry = config, registry
        self.folder = config.output / BASELINE_FOLDER
        self._record: EvalRecord | None = None
        self._source: ModelSource | None = None
        if config.baseline is None:
            return
        if not is_url(config.baseline) and (Path(config.baseline) / EVAL_FILE).is_file():
            self.folder = Path(config.baseline)
            self._record = EvalRecord.load(self.folder)
        else:
            self._source = _source(config, config.baseline, registry)

    def evaluate(self, tasks: tuple[PreparedTask, ...], progress: Progress) -> EvalRecord | None:
        """The baseline's record, evaluated now where it is a model; same prompts made sure of before asking."""
        record = self._record
        if record is not None:
            for task in tasks:
                found = record.task(task.planned.name)
                sha256 = task.prompts_sha256 or (found.prompts_sha256 if found else "")
                require_same_prompts(found, task.planned.name, sha256, str(self.folder))
        if self._source is None:
            return record
        clock = _Clock()
        model, results = ModelRun(self._config, self._source, self.folder, self._registry, progress).run(tasks, None)
        record = _record(self._config, clock, model, results)
        write_record(record, self.folder)
        return record
