"""What a config may say otherwise than the source's. The oracle is Transformers, which loads or refuses it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from fourfold.demo import model_path
from fourfold.verify.source_config import config_differences

DEMO: dict[str, Any] = json.loads((model_path() / "config.json").read_text(encoding="utf-8"))
LAYERS = {str(index): {"head_dim": 64, "num_key_value_heads": 1} for index in (2, 5)}


def by_layer(overrides: dict[str, Any]) -> dict[str, Any]:
    config = copy.deepcopy(DEMO)
    text = {key: value for key, value in config["text_config"].items() if not key.startswith(("global_", "num_global"))}
    config["text_config"] = text | {"per_layer_config": overrides}
    return config


def with_text(**values: Any) -> dict[str, Any]:
    return DEMO | {"text_config": DEMO["text_config"] | values}


def loads(config: dict[str, Any], folder: Path) -> Any:
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return AutoConfig.from_pretrained(folder).get_text_config()


def test_the_same_heads_by_layer_are_no_difference() -> None:
    for overrides in (LAYERS, {f"0{index}": heads for index, heads in LAYERS.items()}):
        assert list(config_differences(by_layer(overrides), DEMO)) == []


def test_a_layer_that_is_named_twice_is_a_difference(tmp_path: Path) -> None:
    config = by_layer(LAYERS | {"02": {"head_dim": 8, "num_key_value_heads": 1}})
    assert loads(config, tmp_path).per_layer_config[2].head_dim == 8
    assert list(config_differences(config, DEMO)) != []


@pytest.mark.parametrize(
    "config",
    [
        by_layer(LAYERS | {"99": {"head_dim": 8}}),
        by_layer(LAYERS | {"abc": {"head_dim": 8}}),
        by_layer(LAYERS | {"2": {"head_dim": 64.9, "num_key_value_heads": 1}}),
        by_layer(LAYERS | {"2": {"head_dim": "64", "num_key_value_heads": 1}}),
        with_text(head_dim=32.0),
        with_text(sliding_window=128.0),
        with_text(attention_k_eq_v=1),
    ],
    ids=["no such layer", "no number", "half a head", "a text", "a float", "another float", "1 for true"],
)
def test_what_transformers_refuses_is_a_difference(config: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r".+"):
        loads(config, tmp_path)
    assert list(config_differences(config, DEMO)) != []
