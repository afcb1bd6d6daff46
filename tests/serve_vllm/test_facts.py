"""What is read of a checkpoint before it is served."""

from __future__ import annotations

import json

import pytest

from fourfold.conformance.model import make_model
from fourfold.errors import CheckpointError
from fourfold_vllm.facts import KvLayer, read_facts


def test_heads_of_a_model_that_transformers_saved(tmp_path):
    """``per_layer_config`` gives layers 1 and 3 one head of 32 instead of two of 16."""
    facts = read_facts(make_model(tmp_path / "model", pairs=2))
    assert facts.kv_layers == (KvLayer(2, 16, 32), KvLayer(1, 32, None)) * 2


@pytest.mark.parametrize(
    ("overrides", "heads"),
    [(None, (1, 32)), ([1], (2, 16)), ({"1": "x"}, (2, 16)), ({"1": {"head_dim": None}}, (2, 16))],
)
def test_heads_of_a_strange_config(tmp_path, overrides, heads):
    """``null`` is not there: then the two numbers for all layers of full attention count."""
    model = make_model(tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    config["text_config"] |= {"per_layer_config": overrides, "global_head_dim": 32, "num_global_key_value_heads": 1}
    (model / "config.json").write_text(json.dumps(config))
    full = read_facts(model).kv_layers[1]
    assert (full.heads, full.head_dim) == heads


def test_a_config_of_something_else_is_one_line(tmp_path):
    model = make_model(tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    config["text_config"]["head_dim"] = []
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"config\.json: text_config is not a Gemma 4's \("):
        read_facts(model)
