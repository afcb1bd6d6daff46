"""What this member registers. Imports nothing heavy: the implementations stand as text."""

from __future__ import annotations

from fourfold.hookspecs import hookimpl
from fourfold.plugins import Entry, Environment
from fourfold_vllm.options import VllmOptions

VLLM_CUDA = Environment(name="vllm", package="fourfold-vllm", extras=("cuda",), provides="vllm", nvidia_gpu=True)
VLLM_CPU = Environment(name="vllm-cpu", package="fourfold-vllm", extras=("cpu",), provides="vllm", nvidia_gpu=False)


@hookimpl
def fourfold_register_servers() -> list[Entry]:
    """The two builds of vLLM; the implementations are light, and start vLLM in their environment."""
    return [
        Entry(
            name="vllm",
            summary="vLLM on NVIDIA GPUs, flags chosen for the GPU",
            options=VllmOptions,
            implementation="fourfold_vllm.server:VllmServer",
            environment=VLLM_CUDA,
        ),
        Entry(
            name="vllm-cpu",
            summary="vLLM on the CPU; NVFP4 computed as the hardware rounds it",
            options=VllmOptions,
            implementation="fourfold_vllm.server:VllmCpuServer",
            environment=VLLM_CPU,
        ),
    ]
