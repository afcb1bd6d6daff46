"""Good checkpoints to plant faults in: a random small Gemma 4 mixture of experts, quantized by the reference codec."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fourfold.checkpoint.index import TensorFolder

from .good_checkpoints import EXPERTS, LAYERS, SIDE_FILES, Editable, Variant, build

MakeEditable = Callable[..., Editable]


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unquantized model with its side files: 3 layers (the last with global attention, K as V), 12 experts."""
    import torch
    from transformers import Gemma4Config, Gemma4ForConditionalGeneration

    text = {
        "vocab_size": 256, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": LAYERS,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "global_head_dim": 32, "num_global_key_value_heads": 1,
        "attention_k_eq_v": True, "enable_moe_block": True, "num_experts": EXPERTS, "top_k_experts": 4,
        "moe_intermediate_size": 48, "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        "sliding_window": 32, "hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 256,
        "num_kv_shared_layers": 0,
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
    folder = tmp_path_factory.mktemp("source")
    model.save_pretrained(folder)
    for name, content in SIDE_FILES.items():
        (folder / name).write_text(content, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def good(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Variant], Path]:
    """A good checkpoint of a variant, built once."""
    built: dict[Variant, Path] = {}

    def get(variant: Variant) -> Path:
        if variant not in built:
            built[variant] = build(TensorFolder(source), variant, tmp_path_factory.mktemp(variant.name))
        return built[variant]

    return get


@pytest.fixture
def editable(good: Callable[[Variant], Path], tmp_path: Path) -> MakeEditable:
    """A copy of a good checkpoint to plant faults in, without its manifest unless asked for."""

    def make(variant: Variant, *, manifest: bool = False) -> Editable:
        folder = tmp_path / "checkpoint"
        shutil.copytree(good(variant), folder)
        if not manifest:
            (folder / "manifest.json").unlink()
        return Editable(folder, variant)

    return make


@pytest.fixture(scope="session")
def source_config(source: Path) -> dict[str, object]:
    """The source's config.json."""
    return json.loads((source / "config.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]
