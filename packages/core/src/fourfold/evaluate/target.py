"""What answers: a running endpoint we attach to, or a local checkpoint we serve; and the machine it is asked from."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from fourfold.checkpoint.index import CONFIG_FILE, read_json
from fourfold.environments import workspace_root
from fourfold.errors import ConfigError, EvaluationError
from fourfold.evaluate.client import client_options, is_url
from fourfold.hardware import detect
from fourfold.interfaces.server import Endpoint, Server
from fourfold.manifest import MANIFEST_FILE, Manifest, sha256_file
from fourfold.models.resolve import resolve_model
from fourfold.plugins import Entry, Registry
from fourfold.progress import Progress
from fourfold.results import Machine, ModelRecord
from fourfold.serving.target import attach, choose_server, make_server

_VERSION_TIMEOUT_S = 5.0


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """A model as it was given, resolved: a ``checkpoint`` folder with its server, or an ``endpoint`` that runs."""

    source: str
    endpoint: Endpoint | None
    checkpoint: Path | None
    server: Entry | None
    server_options: dict[str, Any]

    @property
    def name(self) -> str:
        """For people."""
        return self.endpoint.model if self.endpoint is not None else Path(self.source).name

    @contextmanager
    def serve(self, registry: Registry, progress: Progress) -> Iterator[Endpoint]:
        """Attach to the endpoint, or own a server while the block runs."""
        if self.endpoint is not None:
            yield self.endpoint
            return
        server = self.make_server(registry)
        if self.checkpoint is None or server is None:
            raise ConfigError(
                f"{self.source}: no server for this machine is installed; install fourfold-vllm, or give the address "
                "of a running server"
            )
        with server.serve(self.checkpoint, progress) as endpoint:
            yield endpoint

    def make_server(self, registry: Registry) -> Server[Any] | None:
        """The server with its options; None where none is installed for this machine."""
        return make_server(registry, self.server, self.server_options) if self.server is not None else None

    def record(self) -> ModelRecord:
        """What is known without serving it."""
        folder = self.checkpoint
        if folder is None:
            url, served = (self.endpoint.url, self.endpoint.model) if self.endpoint is not None else (None, None)
            return ModelRecord(name=self.name, source=self.source, kind="endpoint", url=url, served_model=served)
        manifest = folder / MANIFEST_FILE
        return ModelRecord(
            name=self.name,
            source=self.source,
            kind="checkpoint",
            server=self.server.name if self.server else None,
            server_options=self.server_options,
            manifest_sha256=sha256_file(manifest) if manifest.is_file() else None,
            config_sha256=sha256_file(folder / CONFIG_FILE),
            scheme=_scheme(folder),
            size_bytes=folder_bytes(folder),
        )


def find_source(
    given: str,
    registry: Registry,
    *,
    server: str | None = None,
    server_options: dict[str, Any] | None = None,
    served_model: str | None = None,
) -> ModelSource:
    """Resolve what the user gave: an address, ``demo``, a folder or a hub id; check the server's options.

    Nothing is started.
    """
    entry = _server_beside(registry, server) if is_url(given) else choose_server(registry, server)
    if entry is not None:
        entry.options.parse(server_options or {}, where=f"server {entry.name}")
    if is_url(given):
        return ModelSource(
            source=given,
            endpoint=attach(given, served_model),
            checkpoint=None,
            server=entry,
            server_options=server_options or {},
        )
    folder = resolve_model(given)
    if not (folder / CONFIG_FILE).is_file():
        raise EvaluationError(f"{folder}: no {CONFIG_FILE} there; give a checkpoint folder, a hub id or an address")
    return ModelSource(
        source=given,
        endpoint=None,
        checkpoint=folder,
        server=entry,
        server_options=_any_port(entry) | (server_options or {}),
    )


def _any_port(server: Entry | None) -> dict[str, Any]:
    """A server that runs for one evaluation may take any free port, where it has one to choose."""
    return {"port": 0} if server and "port" in server.options.model_fields else {}


def _server_beside(registry: Registry, name: str | None) -> Entry | None:
    """For what only a server can measure of an endpoint, which can do without."""
    try:
        return choose_server(registry, name)
    except ConfigError:
        if name is not None:
            raise
        return None


def server_version(endpoint: Endpoint) -> str | None:
    """What vLLM says at ``/version``; None from servers that do not."""
    try:
        address = endpoint.url.removesuffix("/v1") + "/version"
        answer = httpx.get(address, **client_options(endpoint.url, _VERSION_TIMEOUT_S))
        version = answer.json().get("version") if answer.is_success else None
    except (httpx.HTTPError, ValueError, AttributeError):
        return None
    return str(version) if version else None


def folder_bytes(folder: Path) -> int:
    """Bytes of a checkpoint's files, links followed."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _scheme(folder: Path) -> str | None:
    if (folder / MANIFEST_FILE).is_file():
        return Manifest.read(folder).recipe.scheme_text
    config = read_json(folder / CONFIG_FILE)
    quantized = "quantization_config" in config or (folder / "hf_quant_config.json").is_file()
    return None if quantized else "BF16"


def this_machine() -> Machine:
    """System, processor, memory and GPUs, without names or paths of this place."""
    return Machine(
        system=f"{platform.system()} {platform.machine()}",
        processor=_processor(),
        num_cores=len(os.sched_getaffinity(0)),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        gpus=tuple(gpu.reported_name for gpu in detect()),
    )


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def git_revision() -> str | None:
    """The checkout's commit, with ``-dirty`` where tracked files differ; None outside a checkout."""
    root = workspace_root()
    if root is None:
        return None
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--match", "no-tag"]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
