"""The servers ``vllm`` and ``vllm-cpu``: one class each, alike but for the environment and the machine they are for.

vLLM itself is never imported here: it runs in its own environment, as a process of its own, through the entry point
``python -m vllm.entrypoints.openai.api_server``. (``vllm serve`` is the same parser and the same server, but asks for
a distribution named vllm, which the CPU wheel is not.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import ClassVar

from fourfold.environments import ensure_environment
from fourfold.interfaces.load_check import LoadReport
from fourfold.interfaces.server import Endpoint, Load, LoadResult, ServePlan, Server
from fourfold.plugins import Environment
from fourfold.progress import Progress
from fourfold.stages.logs import log_folder
from fourfold_vllm.command import Launch, decide, describe
from fourfold_vllm.hooks import VLLM_CPU, VLLM_CUDA
from fourfold_vllm.measure import measure_loads
from fourfold_vllm.options import VllmOptions
from fourfold_vllm.process import require_free_port, run_process, wait_ready

_MODULE = ("-m", "vllm.entrypoints.openai.api_server", "--model")


class VllmServer(Server[VllmOptions]):
    """vLLM's CUDA build."""

    environment: ClassVar[Environment] = VLLM_CUDA
    wants_gpu: ClassVar[bool] = True

    def plan(self, checkpoint: Path) -> ServePlan:
        """As anybody with vLLM installed would type it; nothing is started and no port is asked for."""
        launch = self._decide(checkpoint, self.options.port)
        return describe(launch, self.options, ("vllm", "serve", str(checkpoint)))

    @contextmanager
    def serve(self, checkpoint: Path, progress: Progress) -> Iterator[Endpoint]:
        """Start vLLM, wait for its health check, and end its whole process group when the block ends.

        Its log stays where the block fails, and where the options name it.

        Raises :class:`ServerError` for a taken port and for a server that does not come up (with the end of its log),
        :class:`fourfold.errors.DeviceError` for a model that does not fit, before anything is loaded.
        """
        launch = self._decide(checkpoint, self.options.port)
        port = require_free_port(self.options.host, self.options.port)
        if port != self.options.port:
            launch = self._decide(checkpoint, port)
        if self.options.nodes > 1:
            progress.note("Ray must run on every machine already; see fourfold serve --dry-run")
        python = ensure_environment(self.environment, progress)
        for flag in launch.variables:
            progress.note(f"{flag.name}={flag.value}: {flag.why}")
        command = (str(python), *_MODULE, str(checkpoint), *launch.arguments)
        host = _reachable(self.options.host)
        with ExitStack() as stack:
            log = self.options.log or stack.enter_context(log_folder("vllm", progress)) / "vllm.log"
            progress.note(f"the server's log is {log}")
            process = stack.enter_context(run_process(command, launch.environment, log))
            wait_ready(process, f"http://{host}:{port}/health", self.options.timeout_s, progress)
            yield Endpoint(
                url=f"http://{host}:{port}/v1",
                model=launch.model_name,
                owned=True,
                pid=process.head.pid,
                log=log,
                root=str(checkpoint),
            )

    def measure(self, endpoint: Endpoint, loads: Sequence[Load], progress: Progress) -> tuple[LoadResult, ...]:
        """By ``vllm bench serve``'s own functions, in vLLM's environment."""
        return measure_loads(ensure_environment(self.environment, progress), endpoint, loads, progress)

    def check_load(self, checkpoint: Path, progress: Progress) -> LoadReport:
        """By vLLM's own loader, in this interpreter."""
        from fourfold_vllm.load_check.check import check_load

        return check_load(checkpoint, progress)

    def _decide(self, checkpoint: Path, port: int) -> Launch:
        return decide(checkpoint, self.options, wants_gpu=self.wants_gpu, port=port)


class VllmCpuServer(VllmServer):
    """vLLM's CPU build; NVFP4 is computed by Fourfold's plugin."""

    environment: ClassVar[Environment] = VLLM_CPU
    wants_gpu: ClassVar[bool] = False

    def plan(self, checkpoint: Path) -> ServePlan:
        """The command with the module, since the CPU wheel has no working ``vllm serve``."""
        launch = self._decide(checkpoint, self.options.port)
        return describe(launch, self.options, ("python", *_MODULE, str(checkpoint)))


def _reachable(host: str) -> str:
    """An address for a client on this machine."""
    if host in ("0.0.0.0", "::"):
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host
