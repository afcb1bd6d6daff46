"""Checks of what a plugin registers, for any role. None imports an implementation but the last."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from typing import Any

from pydantic import ValidationError

from fourfold.config import Options
from fourfold.conformance.subject import ConformanceError, Subject, require
from fourfold.errors import ConfigError
from fourfold.interfaces.benchmark import Benchmark
from fourfold.interfaces.exporter import Exporter
from fourfold.interfaces.quantizer import Quantizer, QuantizerOptions
from fourfold.interfaces.server import Server
from fourfold.interfaces.unfuser import Unfuser
from fourfold.plugins import Role

#: Top-level modules that registering must not import, beside the entry's own toolchain.
HEAVY = ("torch", "transformers", "numpy", "safetensors", "datasets", "modelopt", "llmcompressor", "vllm")
_INTERFACES: dict[Role, type[Any]] = {
    Role.UNFUSER: Unfuser,
    Role.QUANTIZER: Quantizer,
    Role.EXPORTER: Exporter,
    Role.SERVER: Server,
    Role.BENCHMARK: Benchmark,
}
_PROBE = """
import importlib, json, sys
from fourfold.plugins import Registry, build_plugin_manager
modules = [importlib.import_module(name) for name in sys.argv[1:]]
Registry(build_plugin_manager(modules))
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""
#: No option can mean this.
_NONSENSE: Any = [{"?": object}]


def registering_imports_nothing_heavy(subject: Subject) -> None:
    """Importing the hooks and calling them, in a process of its own, leaves torch and the toolchain unimported."""
    modules = [subject.plugin, *subject.extra_plugins]
    if subject.plugin == "fourfold.reference.hooks":
        modules = []
    done = subprocess.run(
        [sys.executable, "-c", _PROBE, *modules],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    require(done.returncode == 0, f"{subject.plugin}: registering alone fails: {done.stderr.strip()[-400:]}")
    imported = set(json.loads(done.stdout))
    environment = subject.entry.environment
    forbidden = {*HEAVY, *([environment.provides] if environment else [])}
    found = sorted(imported & forbidden)
    require(not found, f"{subject.plugin}: registering imports {', '.join(found)}; import them in the implementation")


def entry_describes_itself(subject: Subject) -> None:
    """A name that can stand in file names, one line of summary, an implementation as ``module:Class``."""
    entry = subject.entry
    require(
        re.fullmatch(r"[a-z0-9][a-z0-9-]*", entry.name), f"name {entry.name!r}: use lower-case letters, digits and -"
    )
    summary = entry.summary
    require(summary.strip() and "\n" not in summary and len(summary) <= 100, f"{entry.name}: summary is not one line")
    require(
        re.fullmatch(r"[\w.]+:\w+", entry.implementation), f"{entry.name}: implementation is not 'module:Class' as text"
    )


def options_are_frozen_and_closed(subject: Subject) -> None:
    """Parsed options cannot be changed, and an unknown key is refused by its path."""
    model = subject.entry.options
    base = QuantizerOptions if subject.role is Role.QUANTIZER else Options
    require(issubclass(model, base), f"{model.__name__}: options must derive from {base.__name__}")
    require(model.model_config.get("frozen"), f"{model.__name__}: options must stay frozen")
    for name in model.model_fields:
        try:
            setattr(subject.parsed_options, name, getattr(subject.parsed_options, name))
        except ValidationError:
            continue
        raise ConformanceError(f"{model.__name__}.{name}: can be set on parsed options")
    _require_refused(subject, {**subject.options, "no-such-option": 1}, f"{subject.role}.no-such-option: unknown key")


def bad_values_are_refused_by_path(subject: Subject) -> None:
    """A value of the wrong kind for any option is a :class:`ConfigError` that begins with the option's path."""
    for name in subject.entry.options.model_fields:
        _require_refused(subject, {**subject.options, name: _NONSENSE}, f"{subject.role}.{name}")


def unknown_algorithm_is_refused(subject: Subject) -> None:
    """``--algorithm`` with a name the quantizer does not have is refused."""
    _require_refused(subject, {**subject.options, "algorithm": "no-such-algorithm"}, f"{subject.role}.algorithm")


def options_survive_json(subject: Subject) -> None:
    """Options travel to another process as JSON, and come back equal."""
    text = json.dumps(subject.parsed_options.model_dump(mode="json"))
    back = subject.entry.options.parse(json.loads(text), where=str(subject.role))
    require(back == subject.parsed_options, f"{subject.name}: options read back from JSON are {back!r}")


def implementation_fills_the_role(subject: Subject) -> None:
    """The named class exists, derives from the role's interface, and takes the options."""
    interface = _INTERFACES[subject.role]
    loaded = subject.registry.load(subject.role, subject.name)
    require(
        isinstance(loaded, type) and issubclass(loaded, interface),
        f"{subject.entry.implementation}: is no {interface.__name__}",
    )
    made = subject.implementation()
    require(made.options == subject.parsed_options, f"{subject.entry.implementation}: did not keep its options")


def _require_refused(subject: Subject, options: dict[str, Any], path: str) -> None:
    try:
        subject.entry.options.parse(options, where=str(subject.role))
    except ConfigError as error:
        require(path in str(error), f"{subject.name}: refused without naming {path}: {error}")
        return
    raise ConformanceError(f"{subject.entry.options.__name__}: accepts what it must refuse under {path}")
