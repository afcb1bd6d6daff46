"""Versions of what can change a result, as records state them."""

from __future__ import annotations

import importlib.metadata
import platform

#: Packages by what they take part in; those that are not installed are left out of a record.
QUANTIZING = (
    "accelerate", "auto-round", "compressed-tensors", "fourfold", "llmcompressor", "nvidia-modelopt", "safetensors",
    "tokenizers", "torch", "transformers",
)  # fmt: skip
ASKING = ("fourfold", "fourfold-eval", "fourfold-vllm", "httpx", "numpy", "pillow")


def package_versions(names: tuple[str, ...] = QUANTIZING) -> dict[str, str]:
    """Versions of those of ``names`` that are installed here, and Python's."""
    versions = {"python": platform.python_version()}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
