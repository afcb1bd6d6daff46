"""The vLLM plugin that computes NVFP4 where the hardware has no FP4 units; see docs/serving-numerics.md.

vLLM calls :func:`register` in each of its processes (API server, engine core, workers, model inspection). It replaces
vLLM's quantization configs of the two NVFP4 layouts by subclasses of the same names, through vLLM's public
registration; no file or class of vLLM is changed. Parameters, the loader and the merging of scales stay vLLM's own:
only the products are ours.
"""

from __future__ import annotations

import os


def register() -> None:
    """Entry point of ``vllm.general_plugins``; may be called more than once.

    Raises :class:`fourfold.errors.ConfigError` for an environment variable that cannot be meant.
    """
    from fourfold_vllm.emulation.settings import Settings

    settings = Settings.from_environment(os.environ)
    from vllm.platforms import current_platform

    if current_platform.device_type == "cpu":
        from fourfold_vllm.cpu_attention import register_cpu_attention

        register_cpu_attention()
    if settings.applies_to(current_platform.device_type):
        from fourfold_vllm.emulation.config import register_configs

        register_configs(settings)
