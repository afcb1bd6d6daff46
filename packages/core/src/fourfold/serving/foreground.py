"""``fourfold serve`` itself: a plan to print, or a server that runs until somebody ends it."""

from __future__ import annotations

from fourfold.errors import ConfigError, ServerError
from fourfold.interfaces.server import ServePlan
from fourfold.progress import Progress
from fourfold.serving.target import Target, wait_for_exit

INTERRUPTED = 130


def plan_of(target: Target, *, docker: bool) -> ServePlan:
    """The plan; :class:`ConfigError` for an address, and where a container is asked for and there is none."""
    if target.checkpoint is None:
        raise ConfigError(f"{target.given}: is running already; there is nothing to plan")
    plan = target.server.plan(target.checkpoint)
    if docker and not plan.docker:
        raise ConfigError(
            "no docker command: the CPU server and the emulation need Fourfold, and several machines need Ray, which "
            "vLLM's container lacks"
        )
    return plan


def serve_until_interrupted(target: Target, progress: Progress) -> int:
    """Serve until Ctrl-C: 0 once it has answered, 130 before. :class:`ServerError` when it ends by itself.

    An address is only checked: somebody else runs it.
    """
    answered = False
    try:
        with target.open(progress) as endpoint:
            answered = True
            if not endpoint.owned:
                progress.note(f"{endpoint.url} answers and serves {endpoint.model}; it is not ours to stop")
                return 0
            progress.note(f"ready: {endpoint.url} serves {endpoint.model}; Ctrl-C stops it")
            code = wait_for_exit(endpoint)
            raise ServerError(f"the server ended by itself (exit code {code}); its log is {endpoint.log}")
    except KeyboardInterrupt:
        progress.note("the server is stopped" if answered else "stopped before it answered")
        return 0 if answered else INTERRUPTED
