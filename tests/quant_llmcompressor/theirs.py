"""llm-compressor alone, as its documentation uses it: patterns, ``oneshot``, ``save_pretrained``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch.utils.data import DataLoader
from transformers import AutoModelForImageTextToText

from fourfold.calibration.tokens import TokenSet

#: Every linear of the text layers but the router's.
ALL_LINEARS = r"re:.*language_model\.layers\.\d+\.(self_attn|mlp|experts\.\d+)\..*_proj$"
FP8_KV = {
    "num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False, "symmetric": True,
    "observer": "static_minmax",
}  # fmt: skip


def llmcompressor_alone(model: Path, folder: Path, job: dict[str, Any], tokens: TokenSet | None, ours: Any) -> None:
    """Quantize and save; ``ours`` is our unfuser, or None for llm-compressor's own linearization."""
    from compressed_tensors.quantization.lifecycle.forward import forward_quantize
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier

    loaded = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.bfloat16, attn_implementation="eager")
    if ours is not None:
        ours.unfuse(loaded)
    if job.get("kv"):
        loaded.config.text_config.allow_global_per_layer_attribute_access = True
    alone = {"NVFP4A16": [job["weights_only"]]} if "weights_only" in job else {}
    arguments: dict[str, Any] = {
        "scheme": {job.get("scheme", "NVFP4"): [job.get("pattern", ALL_LINEARS)]} | alone,
        "kv_cache_scheme": FP8_KV if job.get("kv") else None,
    }
    modifier: Any
    if job.get("gptq"):
        modifier = GPTQModifier(**arguments)
    else:
        modifier = QuantizationModifier(**arguments, weight_observer=job.get("observer"))
    batches = [] if tokens is None else [batch._asdict() for batch in tokens.batches(2)]
    oneshot(
        model=loaded,
        recipe=modifier,
        dataset=DataLoader(batches, batch_size=None) if batches else None,
        processor=object(),
        pipeline="sequential" if job.get("gptq") else "basic" if batches else "datafree",
        moe_calibrate_all_experts=job.get("all_experts", False),
    )
    weights = {
        name: forward_quantize(module, module.weight.data, "weight", module.quantization_scheme.weights)
        for name, module in loaded.named_modules()
        if isinstance(module, torch.nn.Linear) and hasattr(module, "quantization_scheme")
    }
    save_file({name: weight.contiguous() for name, weight in weights.items()}, folder / "weights.safetensors")
    loaded.save_pretrained(folder / "checkpoint", save_compressed=True)
