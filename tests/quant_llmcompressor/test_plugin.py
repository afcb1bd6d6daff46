"""What the backend registers, and that registering costs nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fourfold.errors import MissingEnvironmentError
from fourfold.plugins import Registry, Role, build_plugin_manager
from fourfold_llmcompressor import hooks
from fourfold_llmcompressor.options import LlmcompressorOptions

from .conftest import Runs


def registry() -> Registry:
    return Registry(build_plugin_manager([hooks]))


def test_registers_unfuser_quantizer_and_exporter() -> None:
    found = registry()
    assert [e.name for e in found.entries(Role.UNFUSER)] == ["llmcompressor", "reference"]
    assert found.quantizer("llmcompressor").unfusers == ("reference", "llmcompressor")
    assert found.quantizer("llmcompressor").options is LlmcompressorOptions
    assert found.get(Role.EXPORTER, "compressed-tensors").environment is None
    assert [e.name for e in found.environments()] == ["llmcompressor"]


def test_exporter_loads_without_the_toolchain() -> None:
    assert registry().load(Role.EXPORTER, "compressed-tensors").__name__ == "CompressedTensorsExporter"


def test_without_the_toolchain_the_quantizer_names_the_command_that_installs_it() -> None:
    for role in (Role.QUANTIZER, Role.UNFUSER):
        with pytest.raises(MissingEnvironmentError, match=r"needs llmcompressor, .* fourfold setup llmcompressor$"):
            registry().load(role, "llmcompressor")


def test_importing_the_plugin_imports_nothing_heavy() -> None:
    code = (
        "import sys, fourfold_llmcompressor.hooks, fourfold_llmcompressor.options; "
        "print(sorted({'torch', 'transformers', 'llmcompressor', 'compressed_tensors'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_its_unfuser_splits_into_our_names_and_slices_and_restores_every_tensor(runs: Runs) -> None:
    report = runs["unfuser"].report("report.json")
    assert report["names_equal"]
    assert report["num_equal"] == report["num_linears"]
    assert report["restored"]
