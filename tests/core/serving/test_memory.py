"""Memory of a process group on a machine whose ``nvidia-smi`` is a program of ours."""

from __future__ import annotations

import os

import pytest

from fourfold.serving import memory
from fourfold.serving.memory import MemoryUse, group_memory


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """Put a program of that name on the path."""

    def install(script: str) -> None:
        program = tmp_path / "nvidia-smi"
        program.write_text(script)
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    return install


def test_what_the_group_holds_on_gpus_is_counted(nvidia_smi):
    nvidia_smi(f"#!/bin/sh\necho '{os.getpid()}, 512'\necho '1, 9999'\n")
    assert group_memory(os.getpgrp()) == MemoryUse(num_bytes=512 * 2**20, measure="gpu")


def test_a_group_that_holds_none_is_counted_on_the_host(nvidia_smi):
    nvidia_smi("#!/bin/sh\necho 'No devices were found'; exit 6\n")
    found = group_memory(os.getpgrp())
    assert found is not None
    assert found.measure == "resident-peak"


@pytest.mark.parametrize("script", ["#!/bin/sh\nexec sleep 60\n", "#!/bin/sh\nexit 9\n", "#!/nowhere/sh\n"])
def test_a_driver_that_does_not_answer_leaves_memory_unknown(nvidia_smi, monkeypatch, script):
    """Neither a traceback after a whole benchmark, nor the host's memory under a GPU's model."""
    monkeypatch.setattr(memory, "_TIMEOUT_S", 0.5)
    nvidia_smi(script)
    assert group_memory(os.getpgrp()) is None
