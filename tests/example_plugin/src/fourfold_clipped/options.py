"""Options; read by the command line, so nothing heavy is imported here either."""

from typing import Literal

from pydantic import Field

from fourfold.config import KVCache, Recipe, Scheme
from fourfold.errors import ConfigError
from fourfold.interfaces.quantizer import QuantizerOptions


class ClippedOptions(QuantizerOptions):
    """``clip`` sets the global scale for ``clip_ratio`` of the largest absolute value; ``max`` for all of it."""

    algorithm: Literal["max", "clip"] = "max"
    clip_ratio: float = Field(default=0.9, ge=0.5, le=1)

    def check(self, recipe: Recipe, device: str) -> None:
        """Refuse what needs activations."""
        if recipe.scheme is not Scheme.W4A16 or recipe.kv_cache is not KVCache.NONE:
            raise ConfigError("quantizer 'clipped' reads no activations: use scheme W4A16 and kv_cache none")

    @property
    def ratio(self) -> float:
        """Share of the largest value that the scale is set for."""
        return self.clip_ratio if self.algorithm == "clip" else 1.0
