"""The vLLM plugin that computes NVFP4 where the hardware has no FP4 units; see docs/serving-numerics.md."""

from __future__ import annotations


def register() -> None:
    """Entry point of ``vllm.general_plugins``; vLLM calls it in each of its processes."""
