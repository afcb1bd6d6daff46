"""An owned server process: started in a group of its own, watched through its log and its port, gone in the end."""

from __future__ import annotations

import re
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fourfold.checkpoint.atomic import explained, make_folder
from fourfold.errors import ServerError
from fourfold.progress import Progress
from fourfold.supervisor import how_ended, supervised

TAIL_LINES = 30
_POLL_S = 1.0
_HEALTH_TIMEOUT_S = 5.0
#: What vLLM 0.32 logs on its way, and what a user reads of it.
_STAGES = (
    (re.compile(r"Resolved architecture: (\S+)"), "vLLM: {0}, starting the engine"),
    (re.compile(r"Starting to load model"), "vLLM: loading weights"),
    (re.compile(r"(?:Model loading|Loading weights) took (.+)"), "vLLM: weights loaded ({0})"),
    (re.compile(r"Dynamo bytecode transform|Compiling a graph"), "vLLM: compiling"),
    (re.compile(r"KV cache size: ([\d,]+ tokens)"), "vLLM: KV cache of {0}"),
    (re.compile(r"Capturing CUDA graph"), "vLLM: capturing CUDA graphs"),
    (re.compile(r"Application startup complete"), "vLLM: ready"),
)
_ERROR = re.compile(r"\b[A-Z][A-Za-z]*(?:Error|Exception): .+")


@dataclass(frozen=True)
class ServerProcess:
    """A running group: its head (the supervisor) and its log."""

    head: subprocess.Popen[bytes]
    log: Path


def require_free_port(host: str, port: int) -> int:
    """The port, if nobody listens there; a free one for 0. :class:`ServerError` says what to do about a taken one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ServerError(
                f"port {port} of {host} cannot be taken ({error.strerror}); choose another with --port, 0 for a free "
                "one, or use the server that is there by its URL"
            ) from None
        return int(probe.getsockname()[1])


@contextmanager
def run_process(command: tuple[str, ...], variables: dict[str, str], log: Path) -> Iterator[ServerProcess]:
    """Start ``command`` under a supervisor, its output in ``log``; nothing of it is left after the context.

    :class:`fourfold.errors.OutputError` where the log cannot be written.
    """
    # A server does not report to a network either.
    variables = {"VLLM_NO_USAGE_STATS": "1", "PYTHONUNBUFFERED": "1", **variables}
    with explained(log):
        make_folder(log.parent)
        output = log.open("wb")
    with output, supervised(command, variables, output) as head:
        yield ServerProcess(head, log)


def wait_ready(server: ServerProcess, health_url: str, timeout_s: float, progress: Progress) -> None:
    """Return when the server answers its health check; loading stages become progress.

    Raises :class:`ServerError` with the last lines of the log when it dies or takes longer than ``timeout_s``.
    """
    progress.begin("vLLM: starting", total=None, unit="step")
    deadline = time.monotonic() + timeout_s
    seen: set[str] = set()
    with server.log.open("rb") as stream:
        while True:
            for text in _new_stages(stream.read(), seen):
                progress.begin(text, total=None, unit="step")
            if (code := server.head.poll()) is not None:
                raise ServerError(f"vLLM did not start: it {how_ended(code)}{tail(server.log)}")
            if _healthy(health_url):
                return
            if time.monotonic() > deadline:
                raise ServerError(
                    f"vLLM did not answer within {timeout_s:g} s; give it more with --option timeout_s=N"
                    f"{tail(server.log)}"
                )
            time.sleep(_POLL_S)


def _new_stages(output: bytes, seen: set[str]) -> Iterator[str]:
    for line in output.decode(errors="replace").splitlines():
        for pattern, text in _STAGES:
            match = pattern.search(line)
            if match and text not in seen:
                seen.add(text)
                yield text.format(*(group.strip() for group in match.groups()))


def _healthy(url: str) -> bool:
    # Asked directly: urlopen would send this to a proxy that the environment names, even for 127.0.0.1.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=_HEALTH_TIMEOUT_S) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def tail(log: Path) -> str:
    """The last lines of a log, set off for a message; before them the first error, where it stands further up.

    When vLLM's engine dies, its API server dies after it, with a long trace of its own that names no cause.
    """
    everything = log.read_text(encoding="utf-8", errors="replace").splitlines()
    lines = everything[-TAIL_LINES:]
    first = next((match[0] for line in everything[:-TAIL_LINES] if (match := _ERROR.search(line))), None)
    cause = f"; first error: {first}" if first else ""
    return f"{cause}; the last {len(lines)} lines of {log}:\n" + "\n".join(f"  {line}" for line in lines)
