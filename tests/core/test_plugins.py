"""Finding backends: what is registered, what is refused, and that registering stays light."""

from __future__ import annotations

import importlib.metadata
import inspect
import subprocess
import sys
from types import SimpleNamespace

import pytest

from fourfold import hookspecs
from fourfold.config import Options
from fourfold.errors import MissingEnvironmentError, PluginError, UnknownNameError
from fourfold.hookspecs import hookimpl
from fourfold.plugins import Entry, Environment, QuantizerEntry, Registry, Role, build_plugin_manager


def plugin(role: Role, entries: list[object]) -> SimpleNamespace:
    def register():
        return entries

    register.__name__ = role.hook
    return SimpleNamespace(__name__="fake", **{role.hook: hookimpl(register)})


def entry(name: str = "fake", implementation: str = "nowhere:Nothing", **fields) -> Entry:
    return Entry(name=name, summary="for a test", implementation=implementation, **fields)


@pytest.mark.parametrize("role", list(Role))
def test_every_role_is_registered_through_its_hook(role):
    given = QuantizerEntry(name="fake", summary="", implementation="m:C") if role is Role.QUANTIZER else entry()
    registry = Registry(build_plugin_manager([plugin(role, [given])]))
    assert registry.get(role, "fake") is given


def test_every_hook_belongs_to_a_role_and_takes_no_arguments():
    hooks = {name: f for name, f in vars(hookspecs).items() if name.startswith("fourfold_")}
    assert set(hooks) == {role.hook for role in Role}
    for hook in hooks.values():
        assert not inspect.signature(hook).parameters
        assert "Return entries" in hook.__doc__


def test_installed_backends_are_found(registry):
    assert {e.name for e in registry.entries(Role.QUANTIZER)} == {"llmcompressor", "modelopt", "reference"}
    assert {e.name for e in registry.entries(Role.EXPORTER)} == {"compressed-tensors", "modelopt"}
    assert {e.name for e in registry.entries(Role.SERVER)} == {"vllm", "vllm-cpu"}
    assert {e.name for e in registry.environments()} == {"eval", "llmcompressor", "modelopt", "vllm", "vllm-cpu"}


def test_unknown_name_lists_the_known_ones(registry):
    with pytest.raises(
        UnknownNameError, match=r"unknown quantizer 'modelop'; known: llmcompressor, modelopt, reference"
    ):
        registry.get(Role.QUANTIZER, "modelop")


def test_a_name_twice_is_refused():
    manager = build_plugin_manager([plugin(Role.UNFUSER, [entry("reference")])])
    with pytest.raises(PluginError, match="a unfuser named 'reference' is already registered"):
        Registry(manager)


def test_what_is_no_entry_is_refused():
    with pytest.raises(PluginError, match=r"fourfold_register_servers returned 'vllm', not a Entry"):
        Registry(build_plugin_manager([plugin(Role.SERVER, ["vllm"])]))
    with pytest.raises(PluginError, match="not a QuantizerEntry"):
        Registry(build_plugin_manager([plugin(Role.QUANTIZER, [entry()])]))


def test_a_misspelt_hook_is_refused():
    def fourfold_register_quantisers():
        return []

    misspelt = SimpleNamespace(__name__="fake", fourfold_register_quantisers=hookimpl(fourfold_register_quantisers))
    with pytest.raises(PluginError, match="plugin refused: unknown hook 'fourfold_register_quantisers'"):
        build_plugin_manager([misspelt])


def test_an_environment_described_twice_is_refused():
    one = Environment(name="env", package="a", extras=(), provides="a")
    two = Environment(name="env", package="b", extras=(), provides="b")
    given = [entry("one", environment=one), entry("two", environment=two)]
    with pytest.raises(PluginError, match="environment 'env' is described twice"):
        Registry(build_plugin_manager([plugin(Role.SERVER, given)])).environments()


def test_a_plugin_that_cannot_be_imported_fails_loudly(monkeypatch):
    broken = importlib.metadata.EntryPoint("broken", "no_such_module_anywhere", hookspecs.PROJECT)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **_: [broken])
    with pytest.raises(PluginError, match=r"plugin 'broken' .* cannot be imported .*No module named"):
        build_plugin_manager()


def test_a_missing_toolchain_names_the_command_that_installs_it():
    absent = Environment(name="absent", package="p", extras=("x",), provides="no_such_toolchain")
    given = entry(implementation="no_such_toolchain:Thing", environment=absent)
    registry = Registry(build_plugin_manager([plugin(Role.SERVER, [given])]))
    with pytest.raises(MissingEnvironmentError, match="set it up with: uv run fourfold setup absent"):
        registry.load(Role.SERVER, "fake")


def test_registering_and_help_import_nothing_heavy():
    code = (
        "import sys, fourfold.cli.app, fourfold.plugins as p\n"
        "p.Registry(p.build_plugin_manager())\n"
        "heavy = {'torch', 'transformers', 'modelopt', 'llmcompressor', 'datasets', 'numpy'} & set(sys.modules)\n"
        "sys.exit(', '.join(heavy) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_options_refuse_unknown_keys_with_their_path():
    with pytest.raises(ValueError, match=r"quantizer\.speed: unknown key"):
        Options.parse({"speed": 11}, where="quantizer")
