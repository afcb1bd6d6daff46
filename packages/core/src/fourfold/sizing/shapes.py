"""A Gemma 4 MoE's shapes from ``config.json`` alone: no weights, no transformers.

Gemma 4's attention comes in two kinds. A sliding layer has ``num_key_value_heads`` of ``head_dim`` and keeps a window
of keys and values. A full layer has ``num_global_key_value_heads`` of ``global_head_dim`` and keeps them all; under
``attention_k_eq_v`` it has no ``v_proj`` (the server reads ``k_proj`` into both places, and caches keys and values
apart, as they are normalised differently).

Source: transformers ``models/gemma4/modeling_gemma4.py``; names as in :mod:`fourfold.models.gemma4`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from fourfold.checkpoint.index import CONFIG_FILE, read_json
from fourfold.errors import ModelError
from fourfold.models.gemma4 import ModuleKind
from fourfold.models.gemma4_config import ConfigNumbers

#: Names under which the published model's facts, which are in this package, are asked for.
PUBLISHED = ("gemma4-26b-a4b", "google/gemma-4-26B-A4B-it")
_COLOUR_CHANNELS = 3


@dataclass(frozen=True)
class LinearShape:
    """``copies`` linears [rows, columns] of one projection; a token uses ``active`` of them (8 of 128 experts)."""

    kind: ModuleKind
    projection: str
    rows: int
    columns: int
    copies: int = 1
    active: int = 1

    @property
    def numel(self) -> int:
        """Weights of all copies."""
        return self.rows * self.columns * self.copies

    @property
    def active_numel(self) -> int:
        """Weights a token reads."""
        return self.rows * self.columns * self.active


@dataclass(frozen=True)
class LayerShape:
    """One decoder layer. ``window`` is None where attention is full; ``key_width`` is heads times head dim."""

    index: int
    window: int | None
    key_width: int
    linears: tuple[LinearShape, ...]
    router_numel: int
    other_numel: int

    def numel(self, kind: ModuleKind) -> int:
        """Weights of one role's linears."""
        return sum(linear.numel for linear in self.linears if linear.kind is kind)

    def copies(self, kind: ModuleKind) -> int:
        """Linears of one role."""
        return sum(linear.copies for linear in self.linears if linear.kind is kind)


@dataclass(frozen=True)
class ModelShape:
    """The whole model. ``head_numel`` is 0 where the head is the embedding; ``vision_numel`` counts its embedder."""

    name: str
    layers: tuple[LayerShape, ...]
    max_positions: int
    embedding_numel: int
    head_numel: int
    norm_numel: int
    vision_numel: int

    @property
    def num_parameters(self) -> int:
        """All parameters and stored buffers."""
        layers = sum(
            sum(linear.numel for linear in layer.linears) + layer.router_numel + layer.other_numel
            for layer in self.layers
        )
        return layers + self.embedding_numel + self.head_numel + self.norm_numel + self.vision_numel

    @property
    def active_parameters(self) -> int:
        """Weights a text token is multiplied with, the head included."""
        layers = sum(sum(linear.active_numel for linear in layer.linears) + layer.router_numel for layer in self.layers)
        return layers + (self.head_numel or self.embedding_numel)


def read_shape(model: str) -> ModelShape:
    """The shape of ``model``: 'demo', 'gemma4-26b-a4b', a folder or its config.json, or a hub id.

    Of a hub id only ``config.json`` is fetched. Raises :class:`ModelError` for what is no Gemma 4 MoE, and names the
    key that keeps its shape from being known.
    """
    path = _config_path(model)
    config = read_json(path)
    text = _section(config, "text_config", path) or config if isinstance(config, dict) else {}
    if not str(text.get("model_type", "")).startswith("gemma4") or not text.get("enable_moe_block"):
        raise ModelError(f"{path}: not the config of a Gemma 4 mixture-of-experts model")
    return _shape(model, config, ConfigNumbers(text, path, "text_config"))


def _section(config: Mapping[str, Any], key: str, path: Path) -> Mapping[str, Any]:
    """An object of the config, empty where there is none."""
    section = config.get(key, {})
    if not isinstance(section, Mapping):
        raise ModelError(f"{path}: {key} is a {type(section).__name__}, not an object")
    return section


def _config_path(model: str) -> Path:
    if model in PUBLISHED:
        return Path(str(files("fourfold.sizing") / "gemma4-26b-a4b.json"))
    if model == "demo":
        from fourfold.demo import model_path

        return model_path() / CONFIG_FILE
    path = Path(model)
    if path.is_file():
        return path
    if path.is_dir():
        return path / CONFIG_FILE
    from fourfold.models.resolve import resolve_config

    return resolve_config(model)


def _shape(name: str, config: Mapping[str, Any], text: ConfigNumbers) -> ModelShape:
    hidden = text["hidden_size"]
    embedding = text["vocab_size"] * hidden
    tied = text.section.get("tie_word_embeddings", config.get("tie_word_embeddings", True))
    vision = config.get("vision_config") and _section(config, "vision_config", text.path)
    return ModelShape(
        name=name,
        layers=tuple(_layer(text, index) for index in range(text["num_hidden_layers"])),
        max_positions=text.get("max_position_embeddings", 131_072),
        embedding_numel=embedding,
        head_numel=0 if tied else embedding,
        norm_numel=hidden,
        vision_numel=_vision_numel(ConfigNumbers(vision, text.path, "vision_config"), hidden) if vision else 0,
    )


def _layer(text: ConfigNumbers, index: int) -> LayerShape:
    sliding = text.is_sliding(index)
    hidden, dense, width = text["hidden_size"], text["intermediate_size"], text["moe_intermediate_size"]
    experts, active = text["num_experts"], text["top_k_experts"]
    head_dim, key_heads = text.attention_heads(index)
    alternative = not sliding and text.section.get("attention_k_eq_v")
    queries, keys = text["num_attention_heads"] * head_dim, key_heads * head_dim
    attention = [("q_proj", queries, hidden), ("k_proj", keys, hidden)]
    attention += [] if alternative else [("v_proj", keys, hidden)]
    attention.append(("o_proj", hidden, queries))
    linears = [LinearShape(ModuleKind.ATTENTION, *shape) for shape in attention]
    for kind, inner, copies, used in (
        (ModuleKind.DENSE_MLP, dense, 1, 1),
        (ModuleKind.EXPERT, width, experts, active),
    ):
        linears += [LinearShape(kind, name, inner, hidden, copies, used) for name in ("gate_proj", "up_proj")]
        linears.append(LinearShape(kind, "down_proj", hidden, inner, copies, used))
    return LayerShape(
        index=index,
        window=text["sliding_window"] if sliding else None,
        key_width=keys,
        linears=tuple(linears),
        # projection, input scale, one scale an expert
        router_numel=experts * hidden + hidden + experts,
        # seven norms around attention, dense MLP and experts; query and key norms; layer_scalar
        other_numel=7 * hidden + 2 * head_dim + 1,
    )


def _vision_numel(vision: ConfigNumbers, text_hidden: int) -> int:
    hidden, inner, head_dim = vision["hidden_size"], vision["intermediate_size"], vision["head_dim"]
    queries, keys = vision["num_attention_heads"] * head_dim, vision["num_key_value_heads"] * head_dim
    layer = 2 * hidden * queries + 2 * hidden * keys + 3 * hidden * inner + 4 * hidden + 2 * head_dim
    patches = _COLOUR_CHANNELS * vision["patch_size"] ** 2 * hidden + 2 * vision["position_embedding_size"] * hidden
    standard = 2 * hidden if vision.section.get("standardize") else 0
    return vision["num_hidden_layers"] * layer + patches + standard + hidden * text_hidden
