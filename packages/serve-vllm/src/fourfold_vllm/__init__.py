"""Fourfold's vLLM server, and the vLLM plugin that computes NVFP4 where the hardware cannot."""
