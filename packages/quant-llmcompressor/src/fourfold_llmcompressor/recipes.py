"""From the options to llm-compressor's modifiers.

The targets are given as what is left out: llm-compressor matches every module against every pattern, and the
linears that stay BF16 are few.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from llmcompressor.modifiers import Modifier
from llmcompressor.modifiers.autoround import AutoRoundModifier
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.quantization import QuantizationModifier
from llmcompressor.modifiers.transform.awq import AWQMapping, AWQModifier
from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier
from torch import nn

from fourfold.config import KVCache, Recipe, Scheme
from fourfold_llmcompressor.options import LlmcompressorOptions

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

_PRESETS = {Scheme.W4A4: "NVFP4", Scheme.W4A16: "NVFP4A16"}
_WEIGHT_OBSERVERS = {
    "mse": "memoryless_mse",
    "expanded-mse": "nvfp4_expanded_mse",
    "imatrix-mse": "imatrix_mse",
    "expanded-imatrix": "nvfp4_expanded_imatrix",
}
# Static, because its default for keys and values is a moving average, which depends on the order of the
# samples.
_FP8_KV = {
    "num_bits": 8,
    "type": "float",
    "strategy": "tensor",
    "dynamic": False,
    "symmetric": True,
    "observer": "static_minmax",
}


def transform_modifiers(
    options: LlmcompressorOptions, smooth_pairs: Mapping[str, str], model: nn.Module, targets: Collection[str]
) -> list[Modifier]:
    """What runs in a pass of its own before quantization: AWQ or SmoothQuant over ``smooth_pairs``, else
    nothing.

    ``smooth_pairs`` maps each ``up_proj`` to the ``down_proj`` that reads what it scales.

    llm-compressor's own lists do not know Gemma 4 (AWQ's fall back to Llama's, where
    ``post_attention_layernorm`` feeds the MLP; Gemma's feeds the residual). Of what could be folded, only
    ``up_proj`` into ``down_proj`` leaves every norm, router and embedding as it was; values are normed per
    head after ``v_proj``, so nothing folds there.
    """
    # One pattern a side; llm-compressor pairs the matches by their common parent.
    up, down = full_match(smooth_pairs), full_match(smooth_pairs.values())
    if options.algorithm == "awq":
        # AWQ takes the grid it searches with from a quantization modifier beside it and is refused without one.
        # Its scales are thrown away: the pass to come resets them and observes the transformed model.
        grid = QuantizationModifier(
            targets=["Linear"], scheme=_PRESETS[Scheme.W4A16], ignore=ignore_patterns(model, targets)
        )
        return [AWQModifier(mappings=[AWQMapping(up, [down])], n_grid=options.awq_grid_points), grid]
    if options.algorithm == "smoothquant":
        return [SmoothQuantModifier(mappings=[[[down], up]], smoothing_strength=options.smoothing_strength)]
    return []


def quantization_modifier(
    options: LlmcompressorOptions, recipe: Recipe, model: nn.Module, targets: Collection[str]
) -> Modifier:
    """The modifier that quantizes ``targets`` (module names)."""
    common: dict[str, Any] = {
        "targets": ["Linear"],
        "scheme": _PRESETS[recipe.scheme],
        "ignore": ignore_patterns(model, targets),
    }
    if recipe.weights_only:
        # A pattern of names goes before a class. (AutoRound reads one scheme by its name, and takes no mixed recipe.)
        alone = full_match(name for name in targets if recipe.scheme_of(name) is Scheme.W4A16)
        common["scheme"] = {_PRESETS[recipe.scheme]: ["Linear"], _PRESETS[Scheme.W4A16]: [alone]}
    if recipe.kv_cache is KVCache.FP8:
        common["kv_cache_scheme"] = _FP8_KV
    if options.algorithm == "gptq":
        return GPTQModifier(
            **common,
            dampening_frac=options.gptq_damping,
            block_size=options.gptq_block_size,
            actorder="static" if options.gptq_column_order == "static" else None,
        )
    if options.algorithm == "autoround":
        return AutoRoundModifier(
            **common,
            iters=options.autoround_iterations,
            batch_size=options.autoround_batch_size,
            enable_torch_compile=False,
        )
    return QuantizationModifier(**common, weight_observer=_WEIGHT_OBSERVERS.get(options.algorithm))


def ignore_patterns(model: nn.Module, targets: Collection[str]) -> list[str]:
    """One pattern that matches, in full, every linear of ``model`` that is no target; none where all are."""
    kept = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name not in targets]
    return [full_match(kept)] if kept else []


def full_match(names: Iterable[str]) -> str:
    """A pattern of llm-compressor's that matches exactly ``names``."""
    return f"re:(?:{'|'.join(map(re.escape, names))})$"
