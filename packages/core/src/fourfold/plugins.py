"""Finding backends: a function builds the plugin manager, a registry looks entries up by (role, name).

An :class:`Entry` is light: name, one line, the options model, the environment its toolchain lives in, and
where the implementation stands as text. Nothing heavy is imported before :meth:`Registry.load`.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import pluggy

from fourfold import hookspecs
from fourfold.config import Options
from fourfold.errors import MissingEnvironmentError, PluginError, UnknownNameError


class Role(StrEnum):
    """What an entry is for. The value is the word used in messages and in ``fourfold backends``."""

    UNFUSER = "unfuser"
    QUANTIZER = "quantizer"
    EXPORTER = "exporter"
    SERVER = "server"
    BENCHMARK = "benchmark"

    @property
    def hook(self) -> str:
        """Name of the hook that registers this role."""
        return f"fourfold_register_{self.value}s"


@dataclass(frozen=True, kw_only=True)
class Environment:
    """An isolated Python environment: workspace member ``package`` with ``extras``, under ``.venvs/<name>``.

    ``provides`` is the top-level module whose absence means that the environment is not set up. ``nvidia_gpu`` says
    for which machines it is: with an NVIDIA GPU (True), without one (False), or any (None).
    """

    name: str
    package: str
    extras: tuple[str, ...]
    provides: str
    nvidia_gpu: bool | None = None

    def unsuited(self, *, has_nvidia_gpu: bool) -> str | None:
        """Why this environment is not for such a machine; None when it is."""
        if self.nvidia_gpu is None or self.nvidia_gpu == has_nvidia_gpu:
            return None
        return "no NVIDIA GPU here" if self.nvidia_gpu else "it is for machines without an NVIDIA GPU"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One named implementation of a role.

    ``implementation`` is ``"module:Class"``, imported by :meth:`Registry.load` only. ``environment`` is None
    for an implementation that runs wherever core runs.
    """

    name: str
    summary: str
    implementation: str
    options: type[Options] = Options
    environment: Environment | None = None


@dataclass(frozen=True, kw_only=True)
class QuantizerEntry(Entry):
    """A quantizer also says which unfusers it can work behind; the first is its default."""

    unfusers: tuple[str, ...] = field(default=("reference",))


def build_plugin_manager(plugins: Iterable[object] | None = None) -> pluggy.PluginManager:
    """Build a manager holding the built-in plugin and ``plugins``, by default every installed one.

    Raises :class:`PluginError` when an installed plugin cannot be imported, or implements a hook that does
    not exist. No plugin is skipped in silence.
    """
    from fourfold.reference import hooks as builtin

    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    try:
        manager.register(builtin, name="builtin")
        if plugins is None:
            for entry_point in sorted(importlib.metadata.entry_points(group=hookspecs.PROJECT)):
                manager.register(_import_plugin(entry_point), name=entry_point.name)
        else:
            for plugin in plugins:
                manager.register(plugin)
        manager.check_pending()
    except (pluggy.PluginValidationError, ValueError) as error:
        raise PluginError(f"plugin refused: {error}") from error
    return manager


def _import_plugin(entry_point: importlib.metadata.EntryPoint) -> object:
    try:
        return entry_point.load()
    except Exception as error:
        distribution = entry_point.dist.name if entry_point.dist else "?"
        raise PluginError(
            f"plugin {entry_point.name!r} of {distribution} cannot be imported ({entry_point.value}): "
            f"{type(error).__name__}: {error}; repair or uninstall {distribution}"
        ) from error


class Registry:
    """All entries of a plugin manager, checked once: right type, no name twice in a role."""

    def __init__(self, manager: pluggy.PluginManager) -> None:
        self._entries: dict[Role, dict[str, Entry]] = {role: {} for role in Role}
        for role in Role:
            for implementation in getattr(manager.hook, role.hook).get_hookimpls():
                self._add(role, implementation.plugin_name, implementation.function())

    def _add(self, role: Role, plugin: str, entries: Sequence[Entry]) -> None:
        expected = QuantizerEntry if role is Role.QUANTIZER else Entry
        for entry in entries:
            if not isinstance(entry, expected):
                raise PluginError(f"plugin {plugin!r}: {role.hook} returned {entry!r}, not a {expected.__name__}")
            if entry.name in self._entries[role]:
                raise PluginError(f"plugin {plugin!r}: a {role} named {entry.name!r} is already registered")
            self._entries[role][entry.name] = entry

    def entries(self, role: Role) -> tuple[Entry, ...]:
        """Entries of ``role``, by name."""
        return tuple(entry for _, entry in sorted(self._entries[role].items()))

    def get(self, role: Role, name: str) -> Entry:
        """The entry, or :class:`UnknownNameError` with the known names."""
        try:
            return self._entries[role][name]
        except KeyError:
            raise UnknownNameError(str(role), name, tuple(self._entries[role])) from None

    def quantizer(self, name: str) -> QuantizerEntry:
        """The quantizer entry of that name, typed."""
        entry = self.get(Role.QUANTIZER, name)
        assert isinstance(entry, QuantizerEntry)  # checked on registration
        return entry

    def environments(self) -> tuple[Environment, ...]:
        """Every environment an entry asks for, once, by name."""
        found: dict[str, Environment] = {}
        for role in Role:
            for entry in self.entries(role):
                environment = entry.environment
                if environment and found.setdefault(environment.name, environment) != environment:
                    raise PluginError(
                        f"environment {environment.name!r} is described twice, differently: "
                        f"{found[environment.name]} and {environment}"
                    )
        return tuple(found[name] for name in sorted(found))

    def load(self, role: Role, name: str) -> Any:
        """Import the implementation class; heavy. :class:`MissingEnvironmentError` names the set-up command."""
        entry = self.get(role, name)
        module_name, _, attribute = entry.implementation.partition(":")
        try:
            return getattr(importlib.import_module(module_name), attribute)
        except ModuleNotFoundError as error:
            environment = entry.environment
            if environment is None or (error.name or "").split(".")[0] != environment.provides:
                raise
            raise MissingEnvironmentError(
                f"{role} {name!r} needs {environment.provides}, which is not installed here; "
                f"set it up with: uv run fourfold setup {environment.name}"
            ) from None
