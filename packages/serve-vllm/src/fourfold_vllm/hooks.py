"""What this member registers. Imports nothing heavy: the implementations stand as text."""

from __future__ import annotations

from fourfold.plugins import Environment

VLLM_CUDA = Environment(name="vllm", package="fourfold-vllm", extras=("cuda",), provides="vllm", nvidia_gpu=True)
VLLM_CPU = Environment(name="vllm-cpu", package="fourfold-vllm", extras=("cpu",), provides="vllm", nvidia_gpu=False)
