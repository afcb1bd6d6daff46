"""The backend under check, and what it leaves: one run serves many checks."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from fourfold.config import Options
from fourfold.plugins import Entry, Registry, Role, build_plugin_manager


class ConformanceError(AssertionError):
    """A promise of the interface that the backend does not keep; the message says which, and where it shows."""


class NotApplicable(Exception):  # noqa: N818 - no error: the check has nothing to look at in this backend
    """Why a check does not apply."""


def require(condition: object, message: str) -> None:
    """Raise :class:`ConformanceError` with ``message`` unless ``condition`` holds."""
    if not condition:
        raise ConformanceError(message)


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Something the backend must refuse before it starts, and a part of the message that says why."""

    message: str
    options: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    unfuser: str | None = None
    device: str = "cpu"


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One entry of one plugin.

    Attributes:
        plugin: module that holds the hooks, such as ``my_plugin.hooks``.
        role, name: the entry.
        work: an empty folder for models and results.
        options: of the entry, as a study file would give them.
        keeps_fused: an unfuser that leaves the experts to its quantizer.
        output_tolerance: relative difference that un-fusing may make to the logits; 0 for bit-equal.
        refusals: what a quantizer must refuse.
        extra_plugins: modules of hooks that the entry needs beside its own, such as another plugin's unfusers.
    """

    plugin: str
    role: Role
    name: str
    work: Path
    options: Mapping[str, Any] = field(default_factory=dict)
    keeps_fused: bool = False
    output_tolerance: float = 0.0
    refusals: tuple[Refusal, ...] = ()
    extra_plugins: tuple[str, ...] = ()
    _made: dict[str, Any] = field(default_factory=dict, repr=False)

    @cached_property
    def registry(self) -> Registry:
        """The built-in plugin and the ones under check; what else is installed is not asked."""
        from fourfold.reference import hooks as builtin

        modules = [importlib.import_module(name) for name in (self.plugin, *self.extra_plugins)]
        return Registry(build_plugin_manager([module for module in modules if module is not builtin]))

    @property
    def entry(self) -> Entry:
        """The entry under check; unknown names are refused with the known ones."""
        return self.registry.get(self.role, self.name)

    @cached_property
    def parsed_options(self) -> Options:
        """The options as the entry's model understands them."""
        return self.entry.options.parse(dict(self.options), where=str(self.role))

    def implementation(self) -> Any:
        """A new instance of the implementation."""
        return self.registry.load(self.role, self.name)(self.parsed_options)

    @cached_property
    def model_path(self) -> Path:
        """The suite's model, made once."""
        from fourfold.conformance.model import make_model

        return make_model(self.work / "model")

    def once(self, key: str, make: Callable[[Path], Any]) -> Any:
        """What ``make`` returns for a folder of its own, made on the first call; an error is remembered too."""
        if key not in self._made:
            try:
                self._made[key] = make(self.work / key)
            except Exception as error:  # noqa: BLE001 - raised below, and again for every check that needs it
                self._made[key] = error
        if isinstance(self._made[key], Exception):
            raise self._made[key]
        return self._made[key]
