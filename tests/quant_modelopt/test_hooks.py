"""The backend as core sees it: registered by name, light to know, loaded only where ModelOpt is."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import subprocess
import sys

import pytest

from fourfold.errors import MissingEnvironmentError
from fourfold.interfaces.exporter import Exporter
from fourfold.interfaces.unfuser import Unfuser
from fourfold.plugins import Registry, Role, build_plugin_manager
from fourfold_modelopt import hooks
from fourfold_modelopt.options import ModelOptOptions


@pytest.fixture(scope="module")
def own_registry() -> Registry:
    return Registry(build_plugin_manager([hooks]))


def test_one_entry_in_every_role(own_registry: Registry) -> None:
    quantizer = own_registry.quantizer("modelopt")
    assert quantizer.options is ModelOptOptions
    assert quantizer.unfusers == ("modelopt", "reference")
    for role in (Role.UNFUSER, Role.QUANTIZER):
        assert own_registry.get(role, "modelopt").environment == hooks.MODELOPT
    assert own_registry.get(Role.EXPORTER, "modelopt").environment is None


def test_the_installed_distribution_declares_the_plugin() -> None:
    (entry_point,) = (e for e in importlib.metadata.entry_points(group="fourfold") if e.name == "modelopt")
    assert entry_point.load() is hooks


def test_unfuser_and_exporter_load_without_the_toolchain(own_registry: Registry) -> None:
    assert issubclass(own_registry.load(Role.UNFUSER, "modelopt"), Unfuser)
    assert issubclass(own_registry.load(Role.EXPORTER, "modelopt"), Exporter)


@pytest.mark.skipif(importlib.util.find_spec("modelopt") is not None, reason="ModelOpt is installed here")
def test_quantizer_says_how_to_get_its_toolchain(own_registry: Registry) -> None:
    with pytest.raises(MissingEnvironmentError, match=r"needs modelopt.*uv run fourfold setup modelopt"):
        own_registry.load(Role.QUANTIZER, "modelopt")


def test_registering_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'transformers', 'modelopt'}"
    code = f"import sys, fourfold_modelopt.hooks; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
