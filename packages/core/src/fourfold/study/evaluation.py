"""The evaluation of a study's cells: the unquantized model first, then each checkpoint on the same prompts."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from fourfold.environments import environment_sha256
from fourfold.errors import ConfigError
from fourfold.evaluate.request import EvalConfig
from fourfold.evaluate.tasks import plan_tasks
from fourfold.manifest import MANIFEST_FILE, sha256_file, sha256_paths
from fourfold.plugins import Registry
from fourfold.serving.target import choose_server
from fourfold.study.spec import BASELINE, Evaluation, Study

EVALUATIONS_FOLDER = "evaluations"
IDENTITY_FILE = "identity"


def check_evaluation(study: Study, registry: Registry) -> None:
    """Refuse unknown tasks, options and servers; starts and reads nothing.

    Raises :class:`fourfold.errors.FourfoldError` that names the task, the option or the server.
    """
    if study.evaluate is None:
        return
    names = tuple(task.name for task in study.evaluate.tasks)
    plan_tasks(names, task_options(study.evaluate), registry)
    entry = choose_server(registry, study.evaluate.server)
    entry.options.parse(study.evaluate.server_options, where=f"evaluate.server_options of server {entry.name!r}")


def task_options(evaluation: Evaluation) -> dict[str, object]:
    """Every task's options, keyed ``TASK.KEY``."""
    return {f"{task.name}.{key}": value for task in evaluation.tasks for key, value in task.options.items()}


def baseline_config(study: Study, model: Path, output: Path) -> EvalConfig:
    """What the unquantized model is asked."""
    return _config(study, str(model.absolute()), output / EVALUATIONS_FOLDER / BASELINE, None)


def cell_config(study: Study, cell: str, output: Path) -> EvalConfig:
    """What a cell's checkpoint is asked: the baseline's prompts."""
    baseline = output / EVALUATIONS_FOLDER / BASELINE
    folder = output / EVALUATIONS_FOLDER / cell
    return _config(study, str((output / "checkpoints" / cell).absolute()), folder, str(baseline.absolute()))


def evaluation_identity(config: EvalConfig, registry: Registry, source_files: Mapping[str, str]) -> str:
    """Hash of all that decides an evaluation: what is asked, from which data, of which files, by which packages of the
    server's and each benchmark's environment; no place enters.
    """
    server = choose_server(registry, config.server)
    tasks = plan_tasks(config.tasks, config.options, registry)
    manifest = Path(config.model) / MANIFEST_FILE
    record = {
        "asked": config.model_dump(mode="json", exclude={"model", "output", "baseline", "data"}),
        "manifest": sha256_file(manifest) if config.baseline and manifest.is_file() else None,
        "source_files": dict(source_files),
        "environment": environment_sha256(server.environment, server.implementation),
        "benchmarks": {t.name: environment_sha256(t.entry.environment, t.entry.implementation) for t in tasks},
        "data": _data_files(config.data),
    }
    return hashlib.sha256(json.dumps(record, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _data_files(folder: Path | None) -> dict[str, str]:
    """Digests of every file at or below the benchmarks' data folder: a task file may name others beside or below it."""
    if folder is None:
        return {}
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): digest for path, digest in zip(files, sha256_paths(files), strict=True)}


def clear_unless(folder: Path, identity: str) -> None:
    """Remove what the evaluation of another checkpoint or environment left in ``folder``; mark it as this one's."""
    mark = folder / IDENTITY_FILE
    if folder.is_dir() and (not mark.is_file() or mark.read_text(encoding="utf-8") != identity):
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    mark.write_text(identity, encoding="utf-8")


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
