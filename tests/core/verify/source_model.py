"""The unquantized model that good checkpoints are made of: random, small, with side files."""

from __future__ import annotations

from pathlib import Path

import torch

LAYERS, EXPERTS = 3, 12
SIDE_FILES = {
    "tokenizer.json": '{"version": "1.0", "model": {"vocab": {"a": 0, "<|turn>": 1}}}\n',
    "tokenizer_config.json": '{"tokenizer_class": "GemmaTokenizer", "padding_side": "left", "sot_token": "<|turn>"}\n',
    "special_tokens_map.json": '{"bos_token": "<bos>"}\n',
    "chat_template.jinja": "{{ '<|turn>' }}{{ messages }}\n",
    "processor_config.json": '{"processor_class": "Gemma4Processor", "image_processor": {"max_soft_tokens": 70, '
    '"image_mean": [0.5, 0.5, 0.5]}, "feature_extractor": {}}\n',
    "generation_config.json": '{"eos_token_id": [1, 106], "transformers_version": "5.17.0"}\n',
}


def make_source(folder: Path) -> Path:
    """The unquantized model with its side files: 3 layers (the last with global attention, K as V), 12 experts."""
    from transformers import Gemma4Config, Gemma4ForConditionalGeneration

    text = {
        "vocab_size": 256, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": LAYERS,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "global_head_dim": 32, "num_global_key_value_heads": 1,
        "attention_k_eq_v": True, "enable_moe_block": True, "num_experts": EXPERTS, "top_k_experts": 4,
        "moe_intermediate_size": 48, "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        "sliding_window": 32, "hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 256,
        "num_kv_shared_layers": 0, "final_logit_softcapping": 30.0,
        "dtype": "bfloat16",
    }  # fmt: skip
    vision = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 2, "head_dim": 16, "position_embedding_size": 64, "standardize": True,
        "dtype": "bfloat16",
    }  # fmt: skip
    config = Gemma4Config(text_config=text, vision_config=vision, audio_config=None, dtype="bfloat16")
    torch.manual_seed(0)
    model = Gemma4ForConditionalGeneration(config).to(torch.bfloat16)
    for name, buffer in model.named_buffers():
        if "layer_scalar" in name:
            buffer.fill_(0.7)
    model.save_pretrained(folder)
    for name, content in SIDE_FILES.items():
        (folder / name).write_text(content, encoding="utf-8")
    return folder
