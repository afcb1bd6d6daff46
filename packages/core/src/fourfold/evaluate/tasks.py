"""From the names a user gives to benchmarks with checked options, before anything is started.

A name is a registered benchmark (``gsm8k``), or one of the tasks that a benchmark knows by name: ``lm-eval:drop``, and
``drop`` alone where nobody registered it. Options are ``TASK.KEY=VALUE``.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fourfold.config import Options
from fourfold.errors import ConfigError, EvaluationError
from fourfold.interfaces.benchmark import TaskOptions
from fourfold.plugins import Entry, Registry, Role


@dataclass(frozen=True, kw_only=True)
class PlannedTask:
    """One task: ``name`` as asked for, its entry and its parsed options."""

    name: str
    entry: Entry
    options: Options

    @property
    def file(self) -> str:
        """Stem of the task's files."""
        return task_file(self.name)

    @property
    def options_json(self) -> dict[str, Any]:
        """The options as plain data."""
        return self.options.model_dump(mode="json")


def task_file(name: str) -> str:
    """Stem of a task's files: its name without what file systems dislike."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", name)


def plan_tasks(names: Sequence[str], options: Mapping[str, object], registry: Registry) -> tuple[PlannedTask, ...]:
    """Resolve ``names``; ``options`` are keyed ``TASK.KEY``.

    :class:`ConfigError` for no task, a task twice, an option of a task that is not asked for; unknown names list near
    ones.
    """
    if not names:
        raise ConfigError(f"--tasks: name at least one of {', '.join(_known(registry))}, or a task of lm-eval")
    by_task: dict[str, dict[str, object]] = {name: {} for name in names}
    if len(by_task) != len(names):
        raise ConfigError("--tasks: a task is named twice")
    for path, value in options.items():
        task, _, key = path.rpartition(".")
        if task not in by_task:
            raise ConfigError(f"--option {path}: give TASK.KEY=VALUE with a task of --tasks ({', '.join(by_task)})")
        by_task[task][key] = value
    planned = tuple(_plan(name, given, registry) for name, given in by_task.items())
    if len({task.file for task in planned}) != len(planned):
        raise ConfigError(f"--tasks: two of {', '.join(names)} would share one file of responses")
    return planned


def _plan(name: str, given: Mapping[str, object], registry: Registry) -> PlannedTask:
    known = {entry.name: entry for entry in registry.entries(Role.BENCHMARK)}
    entry_name, colon, task = name.partition(":")
    if name in known:
        entry, extra = known[name], {}
        if issubclass(entry.options, TaskOptions) and "task" not in given:
            raise ConfigError(f"--tasks: {name} knows many tasks; name one as {name}:TASK")
    elif colon and entry_name in known and issubclass(known[entry_name].options, TaskOptions) and task:
        entry, extra = known[entry_name], {"task": task}
    else:
        open_entries = [entry for entry in known.values() if issubclass(entry.options, TaskOptions)]
        if colon or len(open_entries) != 1:
            raise unknown_task(name, tuple(known))
        entry, extra = open_entries[0], {"task": name}
    return PlannedTask(name=name, entry=entry, options=entry.options.parse({**given, **extra}, where=name))


def unknown_task(name: str, known: Sequence[str], *, others: Sequence[str] = ()) -> EvaluationError:
    """The error for a task nobody knows: near names first, of ``known`` and of the many ``others``."""
    near = difflib.get_close_matches(name, list(dict.fromkeys([*known, *others])), n=5, cutoff=0.6)
    hint = f"near names: {', '.join(near)}" if near else f"known: {', '.join(sorted(known))}"
    return EvaluationError(f"unknown task {name!r}; {hint}")


def _known(registry: Registry) -> list[str]:
    return [entry.name for entry in registry.entries(Role.BENCHMARK)]
