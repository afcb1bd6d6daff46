"""From what the user gives (an address, ``demo``, a folder, a hub id) to an endpoint that answers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fourfold.environments import suited_environments
from fourfold.errors import ConfigError, ServerError
from fourfold.evaluate.client import api_base, is_url, list_models
from fourfold.interfaces.server import Endpoint, Server
from fourfold.models.resolve import resolve_model
from fourfold.plugins import Entry, Registry, Role
from fourfold.progress import Progress


@dataclass(frozen=True)
class Target:
    """A model to talk to: ``checkpoint`` to be served by ``server``, or an endpoint somebody else runs."""

    given: str
    server: Server[Any]
    checkpoint: Path | None
    endpoint: Endpoint | None

    @contextmanager
    def open(self, progress: Progress) -> Iterator[Endpoint]:
        """The endpoint, for as long as the block runs."""
        if self.endpoint is not None:
            yield self.endpoint
        elif self.checkpoint is not None:
            with self.server.serve(self.checkpoint, progress) as endpoint:
                yield endpoint


def find_target(
    given: str,
    registry: Registry,
    *,
    server: str | None = None,
    options: dict[str, Any] | None = None,
    tokenizer: str | None = None,
) -> Target:
    """Resolve; nothing is started, and an address is asked whether it answers.

    An address takes no option but ``served_model_name``; ``tokenizer`` stands for the folder that it may not state.
    """
    options = dict(options or {})
    entry = choose_server(registry, server, gpu=options.get("gpu"))
    if is_url(given):
        endpoint = attach(given, options.pop("served_model_name", None))
        endpoint = replace(endpoint, root=tokenizer or endpoint.root)
        if options:
            raise ConfigError(f"{given}: is running already; {', '.join(sorted(options))} cannot be changed")
        return Target(given, make_server(registry, entry, {}), None, endpoint)
    checkpoint = resolve_model(given)
    if given == "demo":
        options.setdefault("served_model_name", "demo")
    return Target(given, make_server(registry, entry, options), checkpoint, None)


def temporary_options(
    given: str, options: dict[str, Any], served_model_name: str | None, *, streams: int | None = None
) -> dict[str, Any]:
    """Options of a server that runs for one command: any free port, and as many ``streams`` as will be asked for."""
    named = {"served_model_name": served_model_name} if served_model_name else {}
    if is_url(given):
        return named
    return {"port": 0, **({"max_num_seqs": streams} if streams else {}), **named, **options}


def make_server(registry: Registry, entry: Entry, options: dict[str, Any]) -> Server[Any]:
    """The entry's server, its options checked."""
    parsed = entry.options.parse(options, where=f"server {entry.name}")
    made: Server[Any] = registry.load(Role.SERVER, entry.name)(parsed)
    return made


def choose_server(registry: Registry, name: str | None, *, gpu: str | None = None) -> Entry:
    """The named server; else the one for the machine, or for a machine with ``gpu``.

    Raises :class:`fourfold.errors.UnknownNameError`, or :class:`ConfigError` when none is installed.
    """
    if name is not None:
        return registry.get(Role.SERVER, name)
    entries = registry.entries(Role.SERVER)
    if gpu is not None:
        suited = {e.name for e in entries if e.environment and not e.environment.unsuited(has_nvidia_gpu=True)}
    else:
        here, _ = suited_environments(tuple(e.environment for e in entries if e.environment))
        suited = {e.name for e in entries if e.environment is None or e.environment in here}
    for entry in entries:
        if entry.name in suited:
            return entry
    raise ConfigError("no server for this machine is installed; install fourfold-vllm")


def attach(url: str, model: str | None = None) -> Endpoint:
    """An endpoint that somebody else runs.

    Raises :class:`fourfold.errors.EvaluationError` where nothing answers as an OpenAI endpoint does, and
    :class:`ServerError` when it serves several models and none was chosen, or not the chosen one.
    """
    base = api_base(url)
    models = {str(entry["id"]): entry for entry in list_models(base)}
    if model is None and len(models) == 1:
        (model,) = models
    if model is None:
        raise ServerError(f"{base}: serves {', '.join(models) or 'no model'}; choose one with --served-model-name")
    if model not in models:
        raise ServerError(f"{base}: serves {', '.join(models) or 'no model'}, not {model}")
    root = models[model].get("root")
    return Endpoint(url=base, model=model, owned=False, root=str(root) if root else None)


def context_tokens(endpoint: Endpoint) -> int | None:
    """The longest prompt with its answer, in tokens, as the endpoint states it; None where it does not."""
    for entry in list_models(endpoint.url):
        if entry["id"] == endpoint.model and isinstance(entry.get("max_model_len"), int):
            return int(entry["max_model_len"])
    return None


def wait_for_exit(endpoint: Endpoint) -> int:
    """Block until an owned server's process ends by itself; its exit code. The owner still collects it."""
    if endpoint.pid is None:
        raise ServerError(f"{endpoint.url}: not our process, so there is nothing to wait for")
    ended = os.waitid(os.P_PID, endpoint.pid, os.WEXITED | os.WNOWAIT)
    return ended.si_status if ended else 0
