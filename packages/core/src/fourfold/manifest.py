"""The manifest of an artifact or checkpoint: what every source tensor became, and out of what it was made.

No times and no paths of the machine that made it: equal work gives an equal manifest.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field

from fourfold.checkpoint.untrusted import open_regular, read_json
from fourfold.config import Config, Recipe
from fourfold.errors import CheckpointError, ConfigError

MANIFEST_FILE = "manifest.json"
SCHEMA_VERSION: Final = 1
_HASHING_THREADS = 8


class Fate(StrEnum):
    """What became of a source tensor."""

    KEPT = "kept"
    QUANTIZED = "quantized"
    DROPPED = "dropped"


class TensorFate(Config):
    """One source tensor's fate; ``reason`` is required for a dropped one, ``kept`` lists modules left as they were."""

    fate: Fate
    reason: str | None = None


class Fallback(Config):
    """A value that was not measured but derived by a named rule."""

    module: str
    rule: str
    detail: str


class Component(Config):
    """A backend by name with its options as they were used."""

    name: str
    options: dict[str, Any] = Field(default_factory=dict)


def shows_all_experts(*components: Component) -> bool:
    """Whether one of a quantizer and an unfuser shows every expert every token."""
    return any(component.options.get("calibrate_all_experts") is True for component in components)


class CalibrationRecord(Config):
    """Which tokens were seen."""

    spec: dict[str, Any]
    source_sha256: str
    tokens_sha256: str
    num_tokens: int


class Manifest(Config):
    """The record beside every artifact and checkpoint."""

    schema_version: Literal[1] = SCHEMA_VERSION
    kind: Literal["artifact", "checkpoint"]
    layout: str
    source_files: dict[str, str]
    recipe: Recipe
    unfuser: Component
    quantizer: Component
    exporter: Component | None = None
    seed: int
    #: CPU threads of the quantizer: on a CPU they decide last bits of GPTQ and AutoRound.
    threads: int | None = None
    calibration: CalibrationRecord | None = None
    packages: dict[str, str]
    tensors: dict[str, TensorFate]
    quantized_modules: tuple[str, ...]
    expert_token_counts: dict[str, tuple[int, ...]] = Field(default_factory=dict)
    fallbacks: tuple[Fallback, ...] = ()
    #: Modules whose weights were changed on purpose before rounding, and how.
    transformed: dict[str, str] = Field(default_factory=dict)
    notes: tuple[str, ...] = ()
    files: dict[str, str] = Field(default_factory=dict)

    @property
    def shows_all_experts(self) -> bool:
        """Whether every expert was shown every token, so that its count of routed ones is not what it saw."""
        return shows_all_experts(self.quantizer, self.unfuser)

    def write(self, folder: Path) -> None:
        """Write ``manifest.json``."""
        (folder / MANIFEST_FILE).write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read ``manifest.json``; :class:`CheckpointError` names what is wrong with it."""
        path = folder / MANIFEST_FILE
        try:
            return cls.parse(read_json(path), where="")
        except ConfigError as error:
            raise CheckpointError(f"{path}: {error}") from None

    def require_files(self, folder: Path) -> None:
        """Raise :class:`CheckpointError` unless ``folder`` holds every recorded file with its recorded bytes."""
        found_digests = sha256_paths(folder / name for name in self.files)
        for name, digest in self.files.items():
            path = folder / name
            try:
                found = next(found_digests)
            except OSError as error:
                raise CheckpointError(f"{path}: {MANIFEST_FILE} lists it; {error.strerror or error}") from None
            if found != digest:
                raise CheckpointError(
                    f"{path}: changed since {MANIFEST_FILE} was written (sha256 {found[:12]}, recorded {digest[:12]}); "
                    f"make the folder again, or remove {MANIFEST_FILE} to use it as files without a record"
                )

    @property
    def rare_modules(self) -> tuple[str, ...]:
        """Modules that got a fallback."""
        return tuple(fallback.module for fallback in self.fallbacks)


def sha256_file(path: Path) -> str:
    """Hex digest of a file's bytes; OSError for what is no regular file."""
    descriptor, _ = open_regular(path)
    with os.fdopen(descriptor, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_paths(paths: Iterable[Path]) -> Iterator[str]:
    """Digest of each file, in order; raises what :func:`sha256_file` does when that file's turn comes.

    Several at a time: hashing lets other threads run, and one of them is slower than a disk.
    """
    pool = ThreadPoolExecutor(min(_HASHING_THREADS, os.cpu_count() or 1))
    try:
        for digest in [pool.submit(sha256_file, path) for path in paths]:
            yield digest.result()
    finally:
        pool.shutdown(cancel_futures=True)


def sha256_files(
    folder: Path, *, skip: tuple[str, ...] = (MANIFEST_FILE,), known: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Digest of every file directly in ``folder``, by name; those of ``known`` are not read again."""
    found = dict(known or {})
    paths = [p for p in sorted(folder.iterdir()) if p.is_file() and p.name not in (*skip, *found)]
    found |= {path.name: digest for path, digest in zip(paths, sha256_paths(paths), strict=True)}
    return dict(sorted(found.items()))
