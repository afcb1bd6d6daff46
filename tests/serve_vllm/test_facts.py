"""What is read of a checkpoint before it is served."""

from __future__ import annotations

from fourfold.conformance.model import make_model
from fourfold_vllm.facts import KvLayer, read_facts


def test_heads_of_a_model_that_transformers_saved(tmp_path):
    """``per_layer_config`` gives layers 1 and 3 one head of 32 instead of two of 16."""
    facts = read_facts(make_model(tmp_path / "model", pairs=2))
    assert facts.kv_layers == (KvLayer(2, 16, 32), KvLayer(1, 32, None)) * 2
