"""The table of GPUs, and what a driver's words are taken for. ``nvidia-smi`` is a program here, as it is elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from fourfold.cli.app import app
from fourfold.environments import suited_environments
from fourfold.errors import DeviceError, UnknownNameError
from fourfold.hardware import GPUS, detect, gpu_by_name, recognise
from fourfold_vllm.hooks import VLLM_CPU, VLLM_CUDA


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """Put a program of that name, and nothing else of it, on the path."""

    def install(script: str) -> None:
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    return install


@pytest.mark.parametrize(
    ("reported", "name"),
    [
        ("NVIDIA GB10", "gb10"),
        ("NVIDIA GeForce RTX 5090", "rtx-5090"),
        ("NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", "rtx-pro-6000-max-q"),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "rtx-pro-6000"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "rtx-pro-6000-server"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H100 NVL", "h100-nvl"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA GB200", "gb200"),
        ("NVIDIA B200", "b200"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA A100-SXM4-40GB", "a100-40"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA A100 80GB PCIe", "a100-pcie"),
        ("Tesla T4", None),
        ("NVIDIA L40", None),
    ],
)
def test_a_drivers_name_is_one_entry_or_none(reported, name):
    found = recognise(reported)
    assert (found.name if found else None) == name


def test_figures_hang_together():
    """What physics and generations force: nothing here repeats the table's own numbers."""
    for gpu in GPUS.values():
        rates = [rate for rate in (gpu.bf16_flops, gpu.fp8_flops, gpu.fp4_flops) if rate is not None]
        assert rates == sorted(rates), gpu.name
        assert gpu.has_fp4 == (gpu.fp4_flops is not None), gpu.name
        assert gpu.fp8_flops is None or gpu.compute_capability >= (8, 9), gpu.name
        # Between reading the whole memory 2 and 50 times a second lies every GPU ever sold for this.
        assert 2 <= gpu.bandwidth / gpu.memory_bytes <= 60, gpu.name


def test_unknown_gpu_lists_the_known_ones():
    with pytest.raises(UnknownNameError, match=r"unknown GPU 'h250'; known: a100, .*gb10, .*rtx-pro-6000-server"):
        gpu_by_name("h250")


def test_several_gpus_are_read_as_the_driver_tells_them(nvidia_smi):
    nvidia_smi("echo '0, NVIDIA H200, 9.0, 143771'; echo '1, Tesla T4, 7.5, 15360'")
    first, second = detect()
    assert (first.kind.name, first.compute_capability, first.memory_bytes) == ("h200", (9, 0), 143771 * 2**20)
    assert (second.kind, second.compute_capability, second.index) == (None, (7, 5), 1)


def test_unified_memory_without_a_size_is_the_hosts(nvidia_smi):
    nvidia_smi("echo '0, NVIDIA GB10, 12.1, [N/A]'")
    (gpu,) = detect()
    kilobytes = int(Path("/proc/meminfo").read_text().split()[1])
    assert gpu.memory_bytes == pytest.approx(kilobytes * 1024, rel=0.01)
    assert gpu.kind.unified_memory


def test_no_gpu_and_a_broken_driver_are_told_apart(nvidia_smi):
    nvidia_smi("echo 'No devices were found'")
    assert detect() == ()
    nvidia_smi("echo 'Driver/library version mismatch' >&2; exit 18")
    with pytest.raises(DeviceError, match=r"nvidia-smi failed \(exit code 18\): Driver/library version mismatch"):
        detect()
    nvidia_smi("echo surprise")
    with pytest.raises(DeviceError, match="nvidia-smi answered 'surprise', not index, name"):
        detect()


def test_environments_are_for_machines(nvidia_smi):
    both = (VLLM_CUDA, VLLM_CPU)
    nvidia_smi("echo '0, NVIDIA H200, 9.0, 143771'")
    assert suited_environments(both) == ((VLLM_CUDA,), {"vllm-cpu": "it is for machines without an NVIDIA GPU"})
    nvidia_smi("echo 'No devices were found'")
    assert suited_environments(both) == ((VLLM_CPU,), {"vllm": "no NVIDIA GPU here"})


def test_setup_makes_what_suits_and_says_what_it_left_out(nvidia_smi, monkeypatch):
    made: list[str] = []

    def make(environment, progress):
        made.append(environment.name)
        return Path(".venvs") / environment.name

    monkeypatch.setattr("fourfold.environments.make_environment", make)
    nvidia_smi("echo 'No devices were found'")
    done = CliRunner().invoke(app, ["setup"])
    assert "vllm-cpu" in made
    assert "vllm" not in made
    assert "vllm skipped: no NVIDIA GPU here; to make it all the same: uv run fourfold setup vllm" in done.stdout
    nvidia_smi("echo '0, NVIDIA H200, 9.0, 143771'")
    made.clear()
    CliRunner().invoke(app, ["setup"])
    assert ("vllm" in made, "vllm-cpu" in made) == (True, False)
    nvidia_smi("echo 'No devices were found'")
    made.clear()
    assert "skipped" not in CliRunner().invoke(app, ["setup", "vllm"]).stdout
    assert made == ["vllm"]
