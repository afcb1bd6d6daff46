"""A random Gemma 4 MoE, small enough for a second, with what quantizers stumble over planted in it."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

VOCABULARY = 256
#: Rows of layer 0's dense ``up_proj`` that are this much larger: outlier channels before ``down_proj``.
OUTLIER_ROWS = (3, 40, 71)
OUTLIER_FACTOR = 20.0


def make_model(folder: Path) -> None:
    """Two layers (sliding, full with K as V), 16 experts, top 4, a vision tower.

    Planted in layer 0: outlier channels; an all-zero block, a tiny block and a negative zero in expert 2.
    """
    from transformers import Gemma4Config, Gemma4ForConditionalGeneration

    text = {
        "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "global_head_dim": 32,
        "num_global_key_value_heads": 1, "attention_k_eq_v": True, "enable_moe_block": True,
        "num_experts": 16, "top_k_experts": 4, "moe_intermediate_size": 48,
        "layer_types": ["sliding_attention", "full_attention"],
        "sliding_window": 32, "final_logit_softcapping": 30.0, "hidden_size_per_layer_input": 0,
        "vocab_size_per_layer_input": VOCABULARY, "num_kv_shared_layers": 0,
        "use_bidirectional_attention": "vision", "dtype": "bfloat16",
    }  # fmt: skip
    vision = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 2, "head_dim": 16, "position_embedding_size": 64, "standardize": True,
        "dtype": "bfloat16",
    }  # fmt: skip
    torch.manual_seed(0)
    config = Gemma4Config(text_config=text, vision_config=vision, audio_config=None, dtype="bfloat16")
    model = Gemma4ForConditionalGeneration(config).to(torch.bfloat16)
    for name, buffer in model.named_buffers():
        if name.endswith("layer_scalar"):
            buffer.fill_(0.7)
    with torch.no_grad():
        layer = model.model.language_model.layers[0]
        layer.mlp.up_proj.weight[list(OUTLIER_ROWS)] *= OUTLIER_FACTOR
        down = layer.experts.down_proj
        down[2, 0, :16] = 0
        down[2, 1, :16] = 1e-7
        down[2, 2, 0] = -0.0
    model.save_pretrained(folder)


def copy_with_zero_expert(model: Path, folder: Path) -> Path:
    """A copy of the model in ``folder`` with the gate and up weights of layer 1's expert 7 all zero."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(model, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.language_model.layers.1.experts.gate_up_proj"][7] = 0
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
