"""Runs of the real quantize stage with the built-in quantizer, in this process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fourfold.artifact import Artifact
from fourfold.calibration import TokenSet
from fourfold.config import Recipe
from fourfold.manifest import Component
from fourfold.plugins import Registry
from fourfold.progress import NoProgress, Progress
from fourfold.stages.quantize import run_quantize
from fourfold.stages.request import QuantizeRequest


@dataclass
class Bench:
    """One model and one token set; artifacts go below ``work``, those of equal names into numbered folders."""

    registry: Registry
    model: Path
    tokens: TokenSet
    work: Path
    batch_size: int = 2
    device: str = "cpu"
    runs: int = 0

    def request(
        self, *, recipe: dict[str, Any] | None = None, quantizer: str = "reference", **options
    ) -> QuantizeRequest:
        self.runs += 1
        output = self.work / f"run-{self.runs}"
        output.mkdir(parents=True)
        self.tokens.save(self.work / "tokens")
        return QuantizeRequest(
            model_path=self.model,
            source_files={},
            tokens_path=self.work / "tokens",
            tokens_sha256=None,
            output=output,
            recipe=Recipe.parse(recipe or {}, where="recipe"),
            unfuser=Component(name="reference"),
            quantizer=Component(name=quantizer, options=options),
            batch_size=self.batch_size,
            device=self.device,
            seed=0,
        )

    def quantize(self, progress: Progress | None = None, **asked: Any) -> Artifact:
        request = self.request(**asked)
        run_quantize(request, self.registry, progress or NoProgress())
        return Artifact(request.output)


def differing(a: Artifact, b: Artifact) -> list[str]:
    """Names of tensors that are not equal to the byte, or stand in one alone."""
    names = sorted(a.tensors.tensors.keys() | b.tensors.tensors.keys())
    return [name for name in names if name not in a.tensors or name not in b.tensors or not same_bytes(a, b, name)]


def same_bytes(a: Artifact, b: Artifact, name: str) -> bool:
    x, y = (artifact.tensors.read(name).reshape(-1).view(torch.uint8) for artifact in (a, b))
    return torch.equal(x, y)
