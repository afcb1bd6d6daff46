"""The registered backends as a listing."""

from __future__ import annotations

from typing import Any

from fourfold.config import Config
from fourfold.environments import python_of
from fourfold.plugins import Entry, Registry, Role


class Backend(Config):
    """One entry. ``state`` is ``ready``, or the command that makes it so."""

    role: str
    name: str
    summary: str
    environment: str | None
    state: str
    options: dict[str, Any]


class BackendListing(Config):
    """What ``fourfold backends --json`` prints; ``options`` is each options model's JSON schema."""

    backends: tuple[Backend, ...]


def list_backends(registry: Registry) -> BackendListing:
    """Every entry of every role, without importing any implementation."""
    return BackendListing(backends=tuple(_describe(role, entry) for role in Role for entry in registry.entries(role)))


def _describe(role: Role, entry: Entry) -> Backend:
    environment = entry.environment
    ready = python_of(environment) is not None
    return Backend(
        role=str(role),
        name=entry.name,
        summary=entry.summary,
        environment=environment.name if environment else None,
        state="ready" if ready or environment is None else f"uv run fourfold setup {environment.name}",
        options=entry.options.model_json_schema().get("properties", {}),
    )
