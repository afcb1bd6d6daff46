"""What a server needs to know of a checkpoint before loading it: layout, bytes, and the shape of its KV cache.

Gemma 4 mixes two kinds of attention. A full layer keeps keys and values of every token; a sliding one of the last
``sliding_window`` tokens, and of those in flight while a prompt is read in pieces. Both keep K and V, also where the
model computes V from K. Source: vLLM 0.32 ``v1/kv_cache_interface.py`` (``FullAttentionSpec``, ``SlidingWindowSpec``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

from fourfold.checkpoint.index import CONFIG_FILE
from fourfold.checkpoint.untrusted import read_json
from fourfold.errors import CheckpointError
from fourfold.models.gemma4_config import FULL_ATTENTION, attention_heads
from fourfold_vllm.shards import stored_bytes

#: Tokens a KV block holds; vLLM's default on CUDA.
_BLOCK_TOKENS = 16
#: Tokens of one step while prompts are read, as vLLM sets it for a server on a large GPU.
TOKENS_IN_FLIGHT = 8192
_ARCHITECTURES = ("Gemma4ForConditionalGeneration", "Gemma4ForCausalLM")


@dataclass(frozen=True)
class KvLayer:
    """Keys and values of one layer: heads, values a head, and the window in tokens (None: all tokens)."""

    heads: int
    head_dim: int
    window: int | None

    def num_values(self, tokens: int, ranks: int) -> int:
        """Values kept for one sequence of ``tokens`` tokens on one of ``ranks`` ranks; heads are not cut in pieces."""
        if self.window is None:
            blocks = ceil(tokens / _BLOCK_TOKENS)
        else:
            blocks = ceil(min(self.window - 1 + TOKENS_IN_FLIGHT, tokens) / _BLOCK_TOKENS) + 1
        return blocks * _BLOCK_TOKENS * 2 * max(1, ceil(self.heads / ranks)) * self.head_dim


@dataclass(frozen=True, kw_only=True)
class CheckpointFacts:
    """One checkpoint. ``quantization`` is vLLM's name of the method, None when nothing is quantized."""

    path: Path
    quantization: str | None
    is_nvfp4: bool
    weight_only: bool
    states_fp8_kv: bool
    weight_bytes: int
    #: The same with every packed weight in two bytes, as the emulation keeps them when it decodes once.
    decoded_bytes: int
    kv_layers: tuple[KvLayer, ...]
    max_positions: int
    num_heads: int
    num_layers: int
    expert_width: int
    num_experts: int

    def kv_bytes(self, tokens: int, bytes_per_value: int, ranks: int = 1) -> int:
        """Bytes of keys and values of one sequence of ``tokens`` tokens, on one rank."""
        return bytes_per_value * sum(layer.num_values(tokens, ranks) for layer in self.kv_layers)


def read_facts(checkpoint: Path) -> CheckpointFacts:
    """Read config and shard headers; :class:`CheckpointError` when this is no checkpoint, or not of Gemma 4."""
    if not checkpoint.is_dir():
        raise CheckpointError(f"{checkpoint}: no such folder; give a checkpoint's folder")
    config_path = checkpoint / CONFIG_FILE
    if not config_path.is_file():
        raise CheckpointError(f"{checkpoint}: not a checkpoint, it has no {CONFIG_FILE}")
    config = read_json(config_path)
    if not isinstance(config, dict):
        raise CheckpointError(f"{config_path}: not a JSON object")
    stored = stored_bytes(checkpoint)
    architecture = (config.get("architectures") or ["unknown"])[0]
    if architecture not in _ARCHITECTURES:
        raise CheckpointError(f"{config_path}: architecture {architecture}; known: {', '.join(_ARCHITECTURES)}")
    text = config.get("text_config", config)
    quantization = _quantization(checkpoint, config)
    method, algorithm = str(quantization.get("quant_method", "")), str(quantization.get("quant_algo", ""))
    mixed = algorithm == "MIXED_PRECISION"
    try:
        return CheckpointFacts(
            path=checkpoint,
            quantization="modelopt_mixed" if mixed else method or None,
            is_nvfp4=mixed or "NVFP4" in algorithm or "nvfp4" in str(quantization.get("format", "")),
            weight_only=_weight_only(quantization, algorithm),
            states_fp8_kv=bool(quantization.get("kv_cache_scheme") or quantization.get("kv_cache_quant_algo")),
            weight_bytes=sum(stored.values()),
            decoded_bytes=sum(count * (4 if dtype == "U8" else 1) for dtype, count in stored.items()),
            kv_layers=_kv_layers(text),
            max_positions=int(text["max_position_embeddings"]),
            num_heads=int(text["num_attention_heads"]),
            num_layers=int(text["num_hidden_layers"]),
            expert_width=int(text.get("moe_intermediate_size") or 0),
            num_experts=int(text.get("num_experts") or 0),
        )
    except KeyError as error:
        raise CheckpointError(f"{config_path}: text_config.{error.args[0]} is missing") from None
    except (TypeError, ValueError, AttributeError, IndexError) as error:
        raise CheckpointError(f"{config_path}: text_config is not a Gemma 4's ({error})") from None


def _quantization(checkpoint: Path, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """``quantization_config`` of config.json, which vLLM prefers, or ModelOpt's own file in its place."""
    if isinstance(config.get("quantization_config"), Mapping):
        return dict(config["quantization_config"])
    beside = checkpoint / "hf_quant_config.json"
    if not beside.is_file():
        return {}
    content = read_json(beside)
    inner = content.get("quantization") if isinstance(content, dict) else None
    if not isinstance(inner, dict):
        raise CheckpointError(f"{beside}: no object named quantization")
    return {"quant_method": "modelopt", **inner}


def _weight_only(quantization: Mapping[str, Any], algorithm: str) -> bool:
    groups = quantization.get("config_groups")
    if isinstance(groups, Mapping) and groups:
        return all(isinstance(g, Mapping) and not g.get("input_activations") for g in groups.values())
    return "W4A16" in algorithm


def _kv_layers(text: Mapping[str, Any]) -> tuple[KvLayer, ...]:
    kinds: list[str] = text["layer_types"]
    own = kinds[: len(kinds) - int(text.get("num_kv_shared_layers") or 0)]

    def layer(index: int, kind: str) -> KvLayer:
        head_dim, heads = attention_heads(text, index)
        return KvLayer(heads, head_dim, None if kind == FULL_ATTENTION else int(text["sliding_window"]))

    return tuple(layer(index, kind) for index, kind in enumerate(own))
