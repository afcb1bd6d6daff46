"""A folder with the 26B's real config and the bytes of its weights, without the bytes: sparse files."""

from __future__ import annotations

import json
import struct
from pathlib import Path

#: google/gemma-4-26B-A4B-it, the fields a server sizes its memory by.
TEXT_CONFIG = {
    "model_type": "gemma4_text",
    "hidden_size": 2816,
    "intermediate_size": 2112,
    "moe_intermediate_size": 704,
    "enable_moe_block": True,
    "num_experts": 128,
    "top_k_experts": 8,
    "num_hidden_layers": 30,
    "layer_types": [*["sliding_attention"] * 5, "full_attention"] * 5,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 256,
    "num_global_key_value_heads": 2,
    "global_head_dim": 512,
    "attention_k_eq_v": True,
    "sliding_window": 1024,
    "max_position_embeddings": 262144,
    "vocab_size": 262144,
}
NVFP4 = {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head"], "config_groups": {
    "group_0": {"input_activations": {"num_bits": 4}, "weights": {"num_bits": 4}, "targets": ["Linear"]},
}}  # fmt: skip
COMPRESSED = {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized", "config_groups": {
    "group_0": {"input_activations": {"num_bits": 4}, "weights": {"num_bits": 4}, "targets": ["Linear"]},
}}  # fmt: skip

#: 23.8 B quantized weights: half a byte each and a byte a block of 16; 1.6 B kept in BF16.
_QUANTIZED, _KEPT = 23_800_000_000, 1_600_000_000


def write_checkpoint(folder: Path, quantization: dict | None, **text: object) -> Path:
    """``quantization`` None: all in BF16, 50.8 GB; otherwise 16.6 GB."""
    folder.mkdir()
    config = {
        "architectures": ["Gemma4ForConditionalGeneration"],
        "model_type": "gemma4",
        "text_config": TEXT_CONFIG | text,
    }
    if quantization is None:
        tensors = {"all": ("BF16", _QUANTIZED + _KEPT, 2)}
    else:
        config["quantization_config"] = quantization
        tensors = {
            "kept": ("BF16", _KEPT, 2),
            "packed": ("U8", _QUANTIZED // 2, 1),
            "scales": ("F8_E4M3", _QUANTIZED // 16, 1),
        }
    (folder / "config.json").write_text(json.dumps(config))
    header, offset = {}, 0
    for name, (dtype, count, size) in tensors.items():
        header[name] = {"dtype": dtype, "shape": [count], "data_offsets": [offset, offset + count * size]}
        offset += count * size
    encoded = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as stream:
        stream.write(struct.pack("<Q", len(encoded)) + encoded)
        stream.truncate(8 + len(encoded) + offset)
    return folder
