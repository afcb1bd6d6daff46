"""Where a study's jobs run: here, one after the other, or as tasks of a Ray cluster."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from fourfold.plugins import Registry
from fourfold.progress import Progress
from fourfold.study.jobs import Job, Outcome
from fourfold.study.perform import failed_before, perform


class Executor(Protocol):
    """Runs jobs, each after those it names, and yields outcomes as they come."""

    def run(self, jobs: Sequence[Job], progress: Progress) -> Iterator[Outcome]:
        """One outcome a job. ``jobs`` stand in an order that respects ``after``."""


class LocalExecutor:
    """One job after the other, in this process; a stage with a toolchain still has a process of its own."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def run(self, jobs: Sequence[Job], progress: Progress) -> Iterator[Outcome]:
        """See :class:`Executor`."""
        outcomes: dict[str, Outcome] = {}
        for number, job in enumerate(jobs, start=1):
            cause = next((outcomes[name] for name in job.after if not outcomes[name].ok), None)
            if cause is None:
                progress.note(f"job {number} of {len(jobs)}, {job.name}")
                outcomes[job.name] = perform(job, self._registry, progress)
            else:
                outcomes[job.name] = failed_before(job, cause)
            yield outcomes[job.name]
