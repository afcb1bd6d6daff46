"""Options of the llm-compressor quantizer, and what is refused before anything starts."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from fourfold.config import KVCache, Recipe, Scheme
from fourfold.errors import ConfigError
from fourfold.interfaces.quantizer import QuantizerOptions

Algorithm = Literal[
    "max", "mse", "expanded-mse", "imatrix-mse", "expanded-imatrix", "gptq", "awq", "smoothquant", "autoround"
]

#: Algorithms that scale every MLP's ``up_proj`` and ``down_proj`` against each other, by its own factors.
SMOOTHING = frozenset({"awq", "smoothquant"})
#: Algorithms that go through llm-compressor's sequential pipeline, which traces the model.
SEQUENTIAL = SMOOTHING | {"gptq", "autoround"}
#: Algorithms that read activations, whatever the scheme.
_READS_ACTIVATIONS = frozenset({"imatrix-mse", "expanded-imatrix", "gptq", "awq", "smoothquant", "autoround"})


class LlmcompressorOptions(QuantizerOptions):
    """Which of llm-compressor's algorithms runs, and how.

    ==================  =====================================================================================
    ``max``             round to nearest from the largest value (its ``QuantizationModifier``)
    ``mse``             block scales searched down from the largest value to 80 % of it, least error^2.4
    ``expanded-mse``    the same from 180 % to 80 % (its ``nvfp4_expanded_mse``, alias ``fouroversix``)
    ``imatrix-mse``     ``mse`` with columns weighted by the mean square of their activations
    ``expanded-imatrix``  ``expanded-mse`` weighted likewise
    ``gptq``            column by column, the error pushed into the columns to come
    ``awq``             ``up_proj`` rows against ``down_proj`` columns, scaled by activations; CUDA only
    ``smoothquant``     the same pairs, scaled by the ranges of activations and weights
    ``autoround``       rounding and clipping tuned by signed gradient descent, a layer at a time
    ==================  =====================================================================================

    ``calibrate_all_experts`` sends every token through every expert while activations are observed; the
    outputs stay routed. ``propagate_error`` lets ``gptq`` see the activations of the layers already
    quantized; the others always see the unquantized model's.
    """

    parameter_prefixes: ClassVar = {
        "gptq_": "gptq", "propagate_error": "gptq", "smoothing_": "smoothquant", "awq_": "awq",
        "autoround_": "autoround",
    }  # fmt: skip

    algorithm: Algorithm = "max"
    calibrate_all_experts: bool = False
    propagate_error: bool = True
    gptq_damping: float = Field(default=0.01, gt=0, lt=1)
    gptq_block_size: int = Field(default=128, ge=1)
    gptq_column_order: Literal["static", "as-stored"] = "static"
    smoothing_strength: float = Field(default=0.5, ge=0, le=1)
    awq_grid_points: int = Field(default=20, ge=3)
    autoround_iterations: int = Field(default=200, ge=1)
    autoround_batch_size: int = Field(default=8, ge=1)

    def check(self, recipe: Recipe, device: str) -> None:
        """Refuse what llm-compressor 0.14 cannot finish. Raises :class:`ConfigError`."""
        if self.algorithm == "awq" and device == "cpu":
            raise ConfigError(
                "quantizer.algorithm: awq does not run on cpu: llm-compressor 0.14 pins its activation "
                "cache, which needs CUDA; choose --device cuda, or smoothquant, which scales the same pairs"
            )
        if self.algorithm == "autoround":
            self._check_autoround(recipe)

    def _check_autoround(self, recipe: Recipe) -> None:
        if self.calibrate_all_experts:
            raise ConfigError(
                "quantizer.calibrate_all_experts: autoround tunes each expert on its routed tokens; "
                "leave calibrate_all_experts off"
            )
        if recipe.scheme is Scheme.W4A16 or recipe.weights_only:
            raise ConfigError(
                "quantizer.algorithm: autoround is W4A4 only: llm-compressor 0.14 hands AutoRound 0.15 a "
                "weights-only NVFP4 type it has no rounding for; choose gptq or expanded-mse for W4A16"
            )
        if recipe.kv_cache is KVCache.FP8:
            raise ConfigError(
                "quantizer.algorithm: autoround observes no keys and values, so recipe.kv_cache fp8 would "
                "have no scales; choose kv_cache none, or another algorithm"
            )

    @property
    def needs_tokens(self) -> bool:
        """Whether the algorithm reads activations even for W4A16."""
        return self.algorithm in _READS_ACTIVATIONS
