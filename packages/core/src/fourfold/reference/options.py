"""Options of the built-in backends; import-light, as the command line reads them."""

from __future__ import annotations

from typing import Literal

from fourfold.config import KVCache, Options, Recipe, Scheme
from fourfold.errors import ConfigError
from fourfold.interfaces.quantizer import QuantizerOptions


class ReferenceUnfuserOptions(Options):
    """``calibrate_all_experts`` shows every expert every token; outputs stay those of the routed ones."""

    calibrate_all_experts: bool = False


class ReferenceQuantizerOptions(QuantizerOptions):
    """The reference quantizer has one algorithm and reads no activations."""

    algorithm: Literal["max"] = "max"

    def check(self, recipe: Recipe, device: str) -> None:
        """Refuse what needs activations, or a device that would sit idle."""
        if recipe.scheme is not Scheme.W4A16 or recipe.kv_cache is not KVCache.NONE:
            raise ConfigError(
                "quantizer 'reference' reads no activations: use --scheme W4A16 and --kv-cache none, "
                "or --quantizer modelopt"
            )
        if device != "cpu":
            raise ConfigError(f"quantizer 'reference' runs on the CPU; leave out --device {device}")
