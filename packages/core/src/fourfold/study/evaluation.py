"""The evaluation of a study's cells: the unquantized model first, then each checkpoint on the same prompts."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from fourfold.environments import ensure_environment, python_of
from fourfold.errors import ConfigError, FourfoldError, StageError, UnreachableDataError
from fourfold.evaluate.prepare import benchmark_job, measurement_job, prepare_task
from fourfold.evaluate.request import EvalConfig
from fourfold.evaluate.tasks import PlannedTask, plan_tasks
from fourfold.interfaces.benchmark import Target
from fourfold.plugins import Registry
from fourfold.progress import NoProgress, Progress
from fourfold.serving.target import choose_server
from fourfold.study.problems import problems_of
from fourfold.study.spec import BASELINE, Evaluation, Study, TaskChoice

EVALUATIONS_FOLDER = "evaluations"


def check_evaluation(study: Study, registry: Registry) -> list[str]:
    """All that is wrong with what is asked: server, data folder, tasks, and prompts that cannot be built.

    Reads no model and makes no environment: a benchmark whose own is not there is left to :func:`make_ready`, and so
    are data of the hub.
    """
    evaluation = study.evaluate
    if evaluation is None:
        return []
    problems = problems_of(lambda: _check_server(evaluation, registry))
    tasks: list[PlannedTask] = []
    for choice in evaluation.tasks:
        try:
            tasks += plan_tasks((choice.name,), _options(choice), registry)
        except FourfoldError as error:
            problems.append(str(error))
    if not problems:
        problems += problems_of(lambda: plan_tasks([task.name for task in tasks], task_options(evaluation), registry))
    if evaluation.data is not None and not Path(evaluation.data).is_dir():
        problems.append(f"data: {evaluation.data}: not a folder")
    else:
        with _nowhere(study, Path(study.model)) as config:
            for task in tasks:
                problems += problems_of(partial(_check_offline, task, config, registry))
    return [f"evaluate: {problem}" for problem in problems]


def make_ready(study: Study, model: Path, registry: Registry, progress: Progress) -> list[str]:
    """Make missing environments of the benchmarks, and of the server where a task needs one; return all that is wrong
    with the tasks, each made ready as it will be to ask ``model``.
    """
    evaluation = study.evaluate
    if evaluation is None:
        return []
    tasks = plan_tasks([task.name for task in evaluation.tasks], task_options(evaluation), registry)
    for task in tasks:
        ensure_environment(task.entry.environment, progress)
    problems: list[str] = []
    is_served = False
    with _nowhere(study, model) as config:
        target = Target(name=BASELINE, endpoint=None, checkpoint=model, server=None)
        for task in tasks:
            try:
                measurement = prepare_task(task, config, registry, progress).measurement
                job = measurement_job(task, config, target, config.output, None)
                is_served |= measurement is None or measurement.needs_endpoint(job)
            except FourfoldError as error:
                problems.append(f"evaluate: {error}")
    if is_served and not problems:
        ensure_environment(choose_server(registry, evaluation.server).environment, progress)
    return problems


def _check_server(evaluation: Evaluation, registry: Registry) -> None:
    entry = choose_server(registry, evaluation.server)
    entry.options.parse(evaluation.server_options, where=f"server_options of server {entry.name!r}")


def _check_offline(task: PlannedTask, config: EvalConfig, registry: Registry) -> None:
    if python_of(task.entry.environment) is None:
        return
    try:
        prepared = prepare_task(task, config, registry, NoProgress(), offline=True)
    except (UnreachableDataError, StageError):
        return  # without the hub nobody can tell what is wrong with the task
    if prepared.measurement is not None:
        prepared.measurement.check(benchmark_job(task, config))


@contextmanager
def _nowhere(study: Study, model: Path) -> Iterator[EvalConfig]:
    """What the unquantized model is asked, into a folder that goes again."""
    with tempfile.TemporaryDirectory(prefix="fourfold-study-") as folder:
        yield baseline_config(study, model, Path(folder))


def task_options(evaluation: Evaluation) -> dict[str, object]:
    """Every task's options, keyed ``TASK.KEY``."""
    return {key: value for task in evaluation.tasks for key, value in _options(task).items()}


def _options(task: TaskChoice) -> dict[str, object]:
    return {f"{task.name}.{key}": value for key, value in task.options.items()}


def baseline_config(study: Study, model: Path, output: Path) -> EvalConfig:
    """What the unquantized model is asked."""
    return _config(study, str(model.absolute()), output / EVALUATIONS_FOLDER / BASELINE, None)


def cell_config(study: Study, cell: str, output: Path) -> EvalConfig:
    """What a cell's checkpoint is asked: the baseline's prompts."""
    baseline = output / EVALUATIONS_FOLDER / BASELINE
    folder = output / EVALUATIONS_FOLDER / cell
    return _config(study, str((output / "checkpoints" / cell).absolute()), folder, str(baseline.absolute()))


def _config(study: Study, model: str, folder: Path, baseline: str | None) -> EvalConfig:
    evaluation = study.evaluate
    if evaluation is None:
        raise ConfigError("evaluate: the study has none")
    return EvalConfig(
        model=model,
        tasks=tuple(task.name for task in evaluation.tasks),
        output=folder.absolute(),
        options=task_options(evaluation),
        baseline=baseline,
        limits={task.name: task.limit for task in evaluation.tasks if task.limit is not None},
        repeats=evaluation.repeats,
        concurrency=evaluation.concurrency,
        data=Path(evaluation.data).absolute() if evaluation.data else None,
        seed=study.seed,
        server=evaluation.server,
        server_options=evaluation.server_options,
    )
