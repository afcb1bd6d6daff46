"""What a stage is asked to do, as typed data: it is hashed for reuse, and sent to another process as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from fourfold.config import Config, Recipe
from fourfold.manifest import Component


class QuantizeRequest(Config):
    """One quantizer run. Paths are where this machine has things; :attr:`identity` leaves them out."""

    stage: Literal["quantize"] = "quantize"
    model_path: Path
    source_files: dict[str, str]
    tokens_path: Path | None
    tokens_sha256: str | None
    output: Path
    recipe: Recipe
    unfuser: Component
    quantizer: Component
    batch_size: int
    device: str
    seed: int

    @property
    def identity(self) -> dict[str, object]:
        """All that decides the result, in JSON terms."""
        return self.model_dump(mode="json", exclude={"stage", "model_path", "tokens_path", "output"})
