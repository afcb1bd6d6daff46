"""The demo model's folder without its weights: configuration, tokenizer, processor, chat template.

Every structural trait of google/gemma-4-26B-A4B-it at a small width. The files are written as that model has them
(``global_head_dim`` rather than a table per layer), which every Transformers release with Gemma 4 reads.

Widths are multiples of 16, NVFP4's block; the expert width is an odd multiple (48 = 3 x 16, as 704 = 44 x 16 is no
multiple of 128), so that alignment mistakes show.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fourfold.demo.tokens import EOS, IMAGE_BEGIN, NAMED_TOKENS, SPECIAL_TOKENS, TURN_END, VIDEO, VOCAB_SIZE, token_id

CHAT_TEMPLATE = Path(__file__).with_name("chat_template.jinja")

NUM_EXPERTS, EXPERTS_PER_TOKEN = 128, 8
LAYER_TYPES = ("sliding_attention", "sliding_attention", "full_attention") * 2
MAX_POSITIONS = 4096

PATCH_SIZE, POOLING = 6, 2
#: The smallest budget Gemma 4's processors allow; a square picture uses 64 of it.
MAX_SOFT_TOKENS = 70
SOFT_TOKENS_PER_FRAME = 64
PATCHES_PER_FRAME = SOFT_TOKENS_PER_FRAME * POOLING**2
MAX_PATCHES = MAX_SOFT_TOKENS * POOLING**2


def text_config() -> dict[str, Any]:
    """The language model's configuration."""
    return {
        "model_type": "gemma4_text",
        "dtype": "bfloat16",
        "vocab_size": VOCAB_SIZE,
        "vocab_size_per_layer_input": VOCAB_SIZE,
        "hidden_size": 96,
        "hidden_size_per_layer_input": 0,
        "intermediate_size": 192,
        "moe_intermediate_size": 48,
        "enable_moe_block": True,
        "num_experts": NUM_EXPERTS,
        "top_k_experts": EXPERTS_PER_TOKEN,
        "num_hidden_layers": len(LAYER_TYPES),
        "layer_types": list(LAYER_TYPES),
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "num_global_key_value_heads": 1,
        "global_head_dim": 64,
        "attention_k_eq_v": True,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "sliding_window": 128,
        "num_kv_shared_layers": 0,
        "use_double_wide_mlp": False,
        "use_bidirectional_attention": "vision",
        "final_logit_softcapping": 30.0,
        "hidden_activation": "gelu_pytorch_tanh",
        "rms_norm_eps": 1e-6,
        "initializer_range": 0.02,
        "max_position_embeddings": MAX_POSITIONS,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
            "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1_000_000.0},
        },
        "tie_word_embeddings": True,
        "use_cache": True,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
    }


def vision_config() -> dict[str, Any]:
    """The vision tower's configuration. Its position table covers the longest side the patch budget allows."""
    return {
        "model_type": "gemma4_vision",
        "dtype": "bfloat16",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 16,
        "patch_size": PATCH_SIZE,
        "pooling_kernel_size": POOLING,
        "position_embedding_size": 160,
        # Transformers reads the processor's figure; vLLM sizes its memory by this one.
        "default_output_length": MAX_SOFT_TOKENS,
        "standardize": True,
        "use_clipped_linears": False,
        "hidden_activation": "gelu_pytorch_tanh",
        "rms_norm_eps": 1e-6,
        "initializer_range": 0.02,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "max_position_embeddings": MAX_POSITIONS,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
    }


def model_config() -> dict[str, Any]:
    """``config.json``."""
    named = {name: token_id(token) for name, token in NAMED_TOKENS.items()}
    return {
        "architectures": ["Gemma4ForConditionalGeneration"],
        "model_type": "gemma4",
        "dtype": "bfloat16",
        "text_config": text_config(),
        "vision_config": vision_config(),
        "audio_config": None,
        "boi_token_id": token_id(IMAGE_BEGIN),
        "eoi_token_id": named["eoi_token"],
        "image_token_id": named["image_token"],
        "video_token_id": token_id(VIDEO),
        "boa_token_id": named["boa_token"],
        "eoa_token_id": named["eoa_token"],
        "eoa_token_index": named["eoa_token"],
        "audio_token_id": named["audio_token"],
        "eos_token_id": [token_id(EOS), token_id(TURN_END)],
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
    }


def generation_config() -> dict[str, Any]:
    """``generation_config.json``: greedy, stopping at the end of a turn."""
    return {
        "bos_token_id": 2,
        "eos_token_id": [token_id(EOS), token_id(TURN_END)],
        "pad_token_id": 0,
        "do_sample": False,
        "max_new_tokens": 256,
    }


def processor_config() -> dict[str, Any]:
    """``processor_config.json``: pictures and clips of 6-pixel patches, pooled two by two."""
    pixels = {
        "do_convert_rgb": True,
        "do_normalize": False,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.0, 0.0, 0.0],
        "image_std": [1.0, 1.0, 1.0],
        "max_soft_tokens": MAX_SOFT_TOKENS,
        "patch_size": PATCH_SIZE,
        "pooling_kernel_size": POOLING,
        "resample": 3,
        "rescale_factor": 1 / 255,
    }
    return {
        "processor_class": "Gemma4Processor",
        "image_seq_length": MAX_SOFT_TOKENS,
        "audio_seq_length": 750,
        "audio_ms_per_token": 40,
        "feature_extractor": {"feature_extractor_type": "Gemma4AudioFeatureExtractor"},
        "image_processor": {"image_processor_type": "Gemma4ImageProcessor", **pixels},
        "video_processor": {
            "video_processor_type": "Gemma4VideoProcessor",
            **pixels,
            "do_sample_frames": True,
            "num_frames": 4,
        },
    }


def tokenizer_config() -> dict[str, Any]:
    """``tokenizer_config.json`` with Gemma 4's keys."""
    return {
        "tokenizer_class": "GemmaTokenizer",
        "processor_class": "Gemma4Processor",
        "backend": "tokenizers",
        "padding_side": "left",
        "model_max_length": MAX_POSITIONS,
        "extra_special_tokens": [VIDEO],
        **NAMED_TOKENS,
    }


def write_processor(folder: Path) -> None:
    """Write tokenizer, chat template, processor and generation configuration, and ``config.json``."""
    from fourfold.demo.tokens import build_tokenizer

    folder.mkdir(parents=True, exist_ok=True)
    build_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE.read_text())
    for name, content in (
        ("config.json", model_config()),
        ("generation_config.json", generation_config()),
        ("processor_config.json", processor_config()),
        ("tokenizer_config.json", tokenizer_config()),
    ):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")


__all__ = ["SPECIAL_TOKENS", "model_config", "write_processor"]
