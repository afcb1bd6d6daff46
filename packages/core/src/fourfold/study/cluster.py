"""A study's jobs as tasks of a Ray cluster whose nodes share the study's folder and this installation's packages.

Ray runs a job again when its node is lost; the job finds what was finished by the hash of what decided it and removes
what was not. Nothing travels between nodes but the jobs and their outcomes, as JSON.
"""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fourfold.errors import ConfigError, MissingEnvironmentError, OutputError, StageError, first_line, last_line
from fourfold.plugins import Registry, build_plugin_manager
from fourfold.progress import NoProgress, Progress
from fourfold.study.jobs import Job, Outcome
from fourfold.study.perform import failed_before, perform
from fourfold.study.results import PROBE_PREFIX
from fourfold.versions import package_versions

#: How often Ray starts a job again that was lost with its node.
_MAX_RETRIES = 5
_PROBE_TIMEOUT_S = 120.0
_LISTEN_TIMEOUT_S = 10.0


class RayExecutor:
    """A connection to a running cluster. Leaving the context ends what still runs there.

    Entering raises :class:`MissingEnvironmentError` without Ray, :class:`ConfigError` when no cluster answers at
    ``address``, and :class:`OutputError` or :class:`ConfigError` naming a node that does not see ``output`` or has
    other packages.
    """

    def __init__(self, address: str, output: Path) -> None:
        self._address, self._output = address, output.absolute()

    def __enter__(self) -> Self:
        # Ray would wrap every worker in `uv run`, which changes environments under a running stage.
        os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
        try:
            import ray
        except ModuleNotFoundError:
            raise MissingEnvironmentError(
                "a study on a cluster needs ray, which is not installed here; "
                "install it with: pip install 'fourfold[ray]'"
            ) from None
        self._require_listener()
        try:
            ray.init(address=self._address, log_to_driver=False, include_dashboard=False)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise ConfigError(f"ray: no cluster answers at {self._address!r} ({first_line(error)})") from None
        try:
            self._check_nodes()
        except BaseException:
            ray.shutdown()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        import ray

        ray.shutdown()

    def _require_listener(self) -> None:
        """Ray itself would try for most of a minute, and then blame a version."""
        host, _, port = self._address.rpartition(":")
        if not host or not port.isdecimal() or "/" in host:
            return
        try:
            socket.create_connection((host, int(port)), timeout=_LISTEN_TIMEOUT_S).close()
        except (OSError, OverflowError) as error:
            raise ConfigError(f"ray: no cluster answers at {self._address!r} ({error})") from None

    def run(self, jobs: Sequence[Job], progress: Progress) -> Iterator[Outcome]:
        """One outcome a job, as they end. A job that no node of the cluster could ever hold is refused before any."""
        import ray

        self._require_room(jobs)
        task = ray.remote(max_retries=_MAX_RETRIES)(_perform_remotely)
        references: dict[str, Any] = {}
        for job in jobs:
            options = {"num_cpus": job.needs.cpus, "num_gpus": job.needs.gpus, "memory": job.needs.memory_bytes}
            remote = task.options(name=job.name, **options)
            references[job.name] = remote.remote(job.model_dump_json(), *[references[name] for name in job.after])
        progress.begin("jobs on the cluster", total=len(jobs), unit="job")
        pending = {reference: name for name, reference in references.items()}
        while pending:
            (ready, *_), _ = ray.wait(list(pending), num_returns=1)
            name = pending.pop(ready)
            outcome = _outcome(name, ready)
            progress.advance()
            progress.note(f"{name}: {'done' if outcome.ok else 'failed'}")
            yield outcome

    def _require_room(self, jobs: Sequence[Job]) -> None:
        nodes = [node["Resources"] for node in _alive_nodes()]
        for job in jobs:
            wanted = {"CPU": job.needs.cpus, "GPU": job.needs.gpus, "memory": job.needs.memory_bytes}
            if not any(all(node.get(what, 0) >= amount for what, amount in wanted.items()) for node in nodes):
                raise ConfigError(
                    f"ray: no node holds {job.name!r} ({job.needs.cpus:g} CPUs, {job.needs.gpus:g} GPUs, "
                    f"{job.needs.memory_bytes / 1e9:.1f} GB); change it with --needs {job.kind}.WHAT=NUMBER"
                )

    def _check_nodes(self) -> None:
        """Every node must see the output folder and run the packages that run here."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self._output.mkdir(parents=True, exist_ok=True)
        probe = self._output / f"{PROBE_PREFIX}{secrets.token_hex(8)}"
        probe.write_text(probe.name, encoding="utf-8")
        try:
            for node in _alive_nodes():
                affinity = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                look = ray.remote(num_cpus=0, max_retries=0)(_look).options(scheduling_strategy=affinity)
                name = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
                try:
                    seen, packages = ray.get(look.remote(str(probe)), timeout=_PROBE_TIMEOUT_S)
                except ray.exceptions.RayError as error:
                    raise ConfigError(f"ray: node {name} cannot run Fourfold: {last_line(error)}") from None
                if not seen:
                    raise OutputError(f"{self._output}: node {name} does not see this folder; it must be a shared one")
                here = package_versions()
                other = sorted(key for key in here.keys() | packages.keys() if here.get(key) != packages.get(key))
                if other:
                    what = ", ".join(f"{key} {packages.get(key)} (here {here.get(key)})" for key in other)
                    raise ConfigError(f"ray: node {name} has other packages: {what}")
        finally:
            probe.unlink(missing_ok=True)


def _alive_nodes() -> list[dict[str, Any]]:
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def _outcome(name: str, reference: Any) -> Outcome:
    import ray

    try:
        return Outcome.model_validate_json(ray.get(reference))
    except ray.exceptions.RayError as error:
        # perform() returns its failures; what comes here is Ray's own: nodes lost more often than it tries again.
        lost = StageError(f"lost on the cluster: {last_line(error)}")
        return Outcome(job=name, error_type=type(lost).__name__, error=str(lost))


def _look(probe: str) -> tuple[bool, dict[str, str]]:
    """On a node: whether the probe file is there, and the packages."""
    return Path(probe).is_file(), package_versions()


def _perform_remotely(job_json: str, *before: str) -> str:
    """On a node: the job, unless one before it failed. Outcomes and jobs travel as JSON."""
    job = Job.model_validate_json(job_json)
    for text in before:
        cause = Outcome.model_validate_json(text)
        if not cause.ok:
            return failed_before(job, cause).model_dump_json()
    outcome = perform(job, Registry(build_plugin_manager()), NoProgress())
    return outcome.model_dump_json()
