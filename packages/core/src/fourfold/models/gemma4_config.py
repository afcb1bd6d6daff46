"""What ``config.json`` says of a Gemma 4's layers where it can be said in two ways.

Google's own files have ``global_head_dim`` and ``num_global_key_value_heads`` for all layers of full attention. A model
that Transformers 5.17 saved has neither: ``per_layer_config`` names what differs, by the layer's number.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FULL_ATTENTION = "full_attention"
#: Transformers' own, where neither way says it.
_GLOBAL_HEAD_DIM = 512


def layer_overrides(text: Mapping[str, Any], index: int) -> dict[str, Any]:
    """What ``per_layer_config`` of a text config has for layer ``index``; of a number that stands there twice (2 and
    02), what comes last, as Transformers reads it.
    """
    overrides = text.get("per_layer_config")
    own: dict[str, Any] = {}
    for key, entry in overrides.items() if isinstance(overrides, Mapping) else ():
        if layer_number(key) == index and isinstance(entry, Mapping):
            own = dict(entry)
    return own


def layer_number(key: str) -> int | None:
    """The layer a key of ``per_layer_config`` means; Transformers pads numbers to one width: 05 of 30 layers."""
    return int(key) if key.isascii() and key.isdigit() else None


def attention_heads(text: Mapping[str, Any], index: int) -> tuple[int, int]:
    """Size of a head and number of key-value heads of layer ``index`` of a text config."""
    size, number = int(text["head_dim"]), int(text["num_key_value_heads"])
    if text.get("per_layer_config") is not None:
        own = layer_overrides(text, index)
        return int(own.get("head_dim") or size), int(own.get("num_key_value_heads") or number)
    if text["layer_types"][index] != FULL_ATTENTION:
        return size, number
    shared = text.get("num_global_key_value_heads") if text.get("attention_k_eq_v") else None
    return int(text.get("global_head_dim") or _GLOBAL_HEAD_DIM), int(shared or number)
