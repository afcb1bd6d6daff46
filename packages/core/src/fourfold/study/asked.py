"""What an evaluation's folder answers, by hash: what was asked otherwise is removed from it, and the rest stays."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from fourfold.config import Config
from fourfold.environments import environment_sha256
from fourfold.errors import FourfoldError
from fourfold.evaluate.folder import MEASUREMENTS_FOLDER, write_record
from fourfold.evaluate.request import EvalConfig
from fourfold.evaluate.tasks import PlannedTask, plan_tasks, task_file
from fourfold.manifest import MANIFEST_FILE, sha256_file, sha256_paths
from fourfold.plugins import Registry
from fourfold.results import EVAL_FILE, RESPONSES_FOLDER, EvalRecord
from fourfold.serving.target import choose_server

IDENTITY_FILE = "identity"


class Asked(Config):
    """Hashes of all that decides an evaluation; no place enters. ``IDENTITY_FILE`` is one of these.

    Attributes:
        request: how every task is asked: by which server with which options, how often, how many at a time, the seed.
        served: what answers: the source's files, the checkpoint's manifest, the server's packages and code.
        tasks: by name, what a task asks: its options and limit, the data, the benchmark's packages and code.
    """

    request: str
    served: str
    tasks: dict[str, str]


def evaluation_identity(config: EvalConfig, registry: Registry, source_files: Mapping[str, str]) -> Asked:
    """What ``config`` asks now, of the checkpoint that is there now; the baseline is known by its source alone."""
    data = _data_files(config.data)
    left_out = {"model", "output", "baseline", "data", "tasks", "options", "limit", "limits"}
    return Asked(
        request=_sha256(config.model_dump(mode="json", exclude=left_out)),
        served=served_sha256(config, registry, source_files),
        tasks={t.name: _task(t, config, data) for t in plan_tasks(config.tasks, config.options, registry)},
    )


def served_sha256(config: EvalConfig, registry: Registry, source_files: Mapping[str, str]) -> str:
    """:attr:`Asked.served`, in which alone the evaluations of one study differ."""
    server = choose_server(registry, config.server)
    manifest = Path(config.model) / MANIFEST_FILE
    return _sha256(
        {
            "manifest": sha256_file(manifest) if config.baseline and manifest.is_file() else None,
            "source_files": dict(source_files),
            "environment": environment_sha256(server.environment, server.implementation),
        }
    )


def discard_others(folder: Path, asked: Asked, *, whoever_answers: bool = False) -> None:
    """Remove what ``folder`` holds of tasks that are asked otherwise now, or no more; all of it, where every task is or
    where another checkpoint or server answered, unless ``whoever_answers``.
    """
    before = _read(folder)
    if before is None or before.request != asked.request or (before.served != asked.served and not whoever_answers):
        _remove(folder)
    else:
        _discard(folder, {name for name, sha256 in before.tasks.items() if asked.tasks.get(name) != sha256})


def mark(folder: Path, asked: Asked) -> None:
    """Say what ``folder`` will answer."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / IDENTITY_FILE).write_text(asked.canonical_json() + "\n", encoding="utf-8")


def holds(folder: Path, asked: Asked, record: EvalRecord) -> bool:
    """Whether ``folder`` is that of ``asked`` and has ``record`` with every response, as it was when it was made."""
    try:
        stands = _read(folder) == asked and EvalRecord.load(folder) == record
    except FourfoldError:
        return False
    files = [task.file for task in record.tasks if task.file is not None]
    return stands and all((folder / RESPONSES_FOLDER / f"{file}.jsonl").is_file() for file in files)


def _read(folder: Path) -> Asked | None:
    try:
        return Asked.model_validate_json((folder / IDENTITY_FILE).read_bytes())
    except (OSError, ValidationError):
        return None


def _discard(folder: Path, names: set[str]) -> None:
    """The record first: it must not tell of responses that are gone."""
    if not names:
        return
    _cut_record(folder, names)
    for name in names:
        (folder / RESPONSES_FOLDER / f"{task_file(name)}.jsonl").unlink(missing_ok=True)
        _remove(folder / MEASUREMENTS_FOLDER / task_file(name))


def _remove(folder: Path) -> None:
    if folder.is_dir():
        shutil.rmtree(folder)


def _cut_record(folder: Path, names: set[str]) -> None:
    """What stays is needed where nothing is left to ask: which model answered, and how long it took."""
    try:
        record = EvalRecord.load(folder)
    except FourfoldError:
        record = None
    tasks = tuple(task for task in record.tasks if task.task not in names) if record else ()
    if record is None or not tasks:
        (folder / EVAL_FILE).unlink(missing_ok=True)
        return
    comparisons = tuple(found for found in record.comparisons if found.task not in names)
    limits = {name: limit for name, limit in record.limits.items() if name not in names}
    write_record(record.model_copy(update={"tasks": tasks, "comparisons": comparisons, "limits": limits}), folder)


def _task(task: PlannedTask, config: EvalConfig, data: Mapping[str, str]) -> str:
    return _sha256(
        {
            "benchmark": task.entry.name,
            "options": task.options_json,
            "limit": config.limit_of(task.name),
            "environment": environment_sha256(task.entry.environment, task.entry.implementation),
            "data": dict(data),
        }
    )


def _data_files(folder: Path | None) -> dict[str, str]:
    """Digests of every file at or below the benchmarks' data folder: a task file may name others beside or below it."""
    if folder is None:
        return {}
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): digest for path, digest in zip(files, sha256_paths(files), strict=True)}


def _sha256(record: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
