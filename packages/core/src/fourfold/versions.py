"""Versions of what can change a result, as records state them."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import platform
from collections.abc import Iterator
from functools import cache
from pathlib import Path

_OWN = "fourfold"
#: Parts of Fourfold that show results, or this machine, and decide none.
_SHOWING = ("cli", "conformance", "doctor.py", "inspect.py", "page", "report", "sizing")
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


@cache
def code_sha256(modules: tuple[str, ...]) -> str:
    """Hash of the Python sources of top-level ``modules``, without those of Fourfold's parts that only show results."""
    digest = hashlib.sha256()
    for module in modules:
        for name, path in _sources(module):
            digest.update(f"{module}/{name}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _sources(module: str) -> Iterator[tuple[str, Path]]:
    """A package's files by their place in it, or the one file of a module."""
    spec = importlib.util.find_spec(module)
    if spec is None:
        return
    if spec.submodule_search_locations is None and spec.origin:
        yield "", Path(spec.origin)
    for root in map(Path, spec.submodule_search_locations or ()):
        for path in sorted(root.rglob("*.py")):
            name = path.relative_to(root)
            if module != _OWN or name.parts[0] not in _SHOWING:
                yield name.as_posix(), path


@cache
def installed_sha256() -> str:
    """Hash of every installed package's name and version."""
    names = sorted(f"{d.metadata['Name']}=={d.version}" for d in importlib.metadata.distributions())
    return hashlib.sha256("\n".join(names).encode()).hexdigest()
