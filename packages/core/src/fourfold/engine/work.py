"""A folder that a streamed run can go on from: finished layers, and the hidden states that enter the next one.

``run.json`` says which run it belongs to; ``layer-NNN.safetensors`` is a finished layer, packed; ``hidden/`` holds the
states. A layer's file appears by renaming, after the states it leaves are on disk, so the number of such files is the
layer to go on at.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch

from fourfold.checkpoint.atomic import is_full_disk
from fourfold.checkpoint.index import read_json
from fourfold.errors import CheckpointError, OutputError
from fourfold.manifest import Fallback
from fourfold.models.gemma4 import LinearModule
from fourfold.nvfp4 import NVFP4Weight

if TYPE_CHECKING:
    from fourfold.artifact import ArtifactWriter
    from fourfold.interfaces.quantizer import QuantizeJob

_RECORD = "run.json"
_PARTS = ("packed_weight", "block_scale", "global_scale", "input_global_scale")


@dataclass
class PackedLayer:
    """One layer's result: its targets in order, the tokens of its experts, what was derived instead of measured."""

    index: int
    weights: list[tuple[LinearModule, NVFP4Weight, torch.Tensor | None]] = field(default_factory=list)
    tokens_E: torch.Tensor | None = None
    fallbacks: list[Fallback] = field(default_factory=list)

    def give(self, artifact: ArtifactWriter) -> None:
        """Write everything to ``artifact``."""
        for module, weight, scale in self.weights:
            artifact.add_weight(module, weight, scale)
        if self.tokens_E is not None:
            artifact.record_expert_tokens(self.index, self.tokens_E)
        for fallback in self.fallbacks:
            artifact.record_fallback(fallback.module, fallback.rule, fallback.detail)

    def save(self, path: Path) -> None:
        """Write a file that appears whole; :class:`OutputError` for a full disk."""
        from safetensors.torch import save

        tensors: dict[str, torch.Tensor] = {}
        for module, weight, scale in self.weights:
            values = (weight.packed_weight, weight.block_scale, weight.global_scale, scale)
            tensors |= {f"{module.name}.{part}": v for part, v in zip(_PARTS, values, strict=True) if v is not None}
        if self.tokens_E is not None:
            tensors["tokens"] = self.tokens_E
        record = json.dumps([fallback.model_dump() for fallback in self.fallbacks])
        partial = path.with_suffix(".partial")
        # Members of a scale group share one scalar; a file holds none of them by reference. Not save_file: what the
        # system refuses (a full disk) would be no OSError there.
        data = save({name: t.clone() for name, t in tensors.items()}, metadata={"fallbacks": record})
        try:
            with partial.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            partial.unlink(missing_ok=True)
            if not is_full_disk(error):
                raise
            raise OutputError(
                f"{path.parent}: the disk is full after layer {self.index}; free some of it, and the same command goes "
                "on there"
            ) from None
        partial.rename(path)

    @classmethod
    def load(cls, path: Path, index: int, targets: tuple[LinearModule, ...]) -> PackedLayer:
        """Read what :meth:`save` wrote; :class:`CheckpointError` for a damaged file."""
        from safetensors import SafetensorError, safe_open

        layer = cls(index)
        try:
            with safe_open(path, framework="pt") as file:
                names = set(file.keys())
                for module in targets:
                    values = [
                        file.get_tensor(name) if (name := f"{module.name}.{part}") in names else None for part in _PARTS
                    ]
                    layer.weights.append((module, NVFP4Weight(*values[:3]), values[3]))  # type: ignore[arg-type]
                layer.tokens_E = file.get_tensor("tokens") if "tokens" in names else None
                layer.fallbacks = [Fallback.model_validate(f) for f in json.loads(file.metadata()["fallbacks"])]
        except (SafetensorError, TypeError, ValueError, KeyError, OSError) as error:
            raise CheckpointError(f"{path}: not a finished layer ({error}); remove the folder to begin anew") from None
        return layer


class WorkFolder:
    """The folder of one run, held for this process until it is closed, as at a block's end.

    Raises :class:`OutputError` when it belongs to another run, or one is at work there.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self.path = path
        record = path / _RECORD
        if not record.is_file() and path.exists() and any(path.iterdir()):
            raise OutputError(f"{path}: not empty, and no work of a run; name another folder")
        path.mkdir(parents=True, exist_ok=True)
        # The record is the lock too, so that removing the folder leaves none. The system lets go of a killed run's.
        self._held = record.open("a", encoding="utf-8")
        try:
            self._hold(record, dict(identity))
        except BaseException:
            self._held.close()
            raise

    def _hold(self, record: Path, identity: dict[str, Any]) -> None:
        try:
            fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(f"{self.path}: another run is at work there; wait for it or end it") from None
        if record.stat().st_size == 0:
            self._held.write(json.dumps(identity, indent=1, sort_keys=True) + "\n")
            self._held.flush()
        elif read_json(record) != identity:
            raise OutputError(
                f"{self.path}: holds the work of another run (other model, tokens, options, code or packages); "
                "remove it, or name another folder with --option work=DIR"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    @property
    def hidden(self) -> Path:
        """Where hidden states stand."""
        return self.path / "hidden"

    def layer(self, index: int) -> Path:
        """File of a finished layer."""
        return self.path / f"layer-{index:03d}.safetensors"

    @property
    def num_finished(self) -> int:
        """Layers that need not be run again."""
        number = 0
        while self.layer(number).is_file():
            number += 1
        return number


def remove_work(path: Path, stage_sha256: str) -> None:
    """Remove the folder if it is that stage's, which stands, and no run is at work there."""
    try:
        record = read_json(path / _RECORD)
        if isinstance(record, dict) and record.get("stage") == stage_sha256:
            with WorkFolder(path, record):
                shutil.rmtree(path, ignore_errors=True)
    except (CheckpointError, OutputError):
        return


def identity_of(job: QuantizeJob, options: Mapping[str, Any]) -> dict[str, Any]:
    """What decides a run's layers: the source's files by size and time, tokens, recipe, options, and the stage's own
    identity, which alone knows code, packages and threads.
    """
    files = sorted({entry.file for entry in job.source.tensors.values()})
    stats = {name: (job.source.path / name).stat() for name in files}
    config = (job.source.path / "config.json").read_bytes()
    return {
        "source": {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()},
        "config": hashlib.sha256(config).hexdigest(),
        "tokens": None if job.tokens is None else job.tokens.sha256,
        "targets": hashlib.sha256("\n".join(str(m.name) for m in job.targets).encode()).hexdigest(),
        "recipe": job.recipe.model_dump(mode="json"),
        "options": dict(options),
        "batch_size": job.batch_size,
        "device": job.device,
        "seed": job.seed,
        "stage": job.stage_sha256,
    }
