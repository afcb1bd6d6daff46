"""What ``config.json`` says of a Gemma 4's layers where it can be said in two ways.

Google's own files have ``global_head_dim`` and ``num_global_key_value_heads`` for all layers of full attention. A model
that Transformers 5.17 saved has neither: ``per_layer_config`` names what differs, by the layer's number.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fourfold.checkpoint.untrusted import printable
from fourfold.errors import ModelError

FULL_ATTENTION, SLIDING_ATTENTION = "full_attention", "sliding_attention"
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


class ConfigNumbers:
    """A config section whose numbers are checked as they are read; :class:`ModelError` names the key of one that is
    not a positive number.
    """

    def __init__(self, section: Mapping[str, Any], path: Path, name: str) -> None:
        self.section, self.path, self._name = section, path, name

    def __getitem__(self, key: str) -> int:
        if key not in self.section:
            raise ModelError(f"{self.path}: {self._name}.{key} is missing")
        value = self.section[key]
        if type(value) is not int or not 0 < value < 2**31:
            raise ModelError(f"{self.path}: {self._name}.{key} is {printable(repr(value), 80)}, not a positive number")
        return value

    def get(self, key: str, default: int) -> int:
        """The number, or ``default`` where the key is absent, null or 0."""
        return self[key] if self.section.get(key) else default

    def is_sliding(self, index: int) -> bool:
        """Whether attention of layer ``index`` has a window."""
        types = self.section.get("layer_types")
        if not isinstance(types, list) or len(types) != self["num_hidden_layers"]:
            raise ModelError(f"{self.path}: {self._name}.layer_types does not list every layer")
        return bool(types[index] == SLIDING_ATTENTION)

    def attention_heads(self, index: int) -> tuple[int, int]:
        """Size of a head and number of key-value heads of layer ``index``."""
        size, number = self["head_dim"], self["num_key_value_heads"]
        if not self.is_sliding(index) and self.section.get("per_layer_config") is None:
            size = self.get("global_head_dim", _GLOBAL_HEAD_DIM)
            if self.section.get("attention_k_eq_v"):
                number = self.get("num_global_key_value_heads", number)
        return self._of_layer(index, "head_dim", size), self._of_layer(index, "num_key_value_heads", number)

    def _of_layer(self, index: int, key: str, default: int) -> int:
        """A number that a layer may override, in ``per_layer_config``."""
        own = layer_overrides(self.section, index)
        if key in own:
            return ConfigNumbers(own, self.path, f"{self._name}.per_layer_config.{index}")[key]
        return default
