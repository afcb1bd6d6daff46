"""Shapes and bytes from config.json alone, against real weights, transformers' own model, and published sizes."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch

from fourfold.checkpoint.index import TensorFolder
from fourfold.config import TARGET_PRESETS, Recipe
from fourfold.conformance.model import make_model
from fourfold.demo import model_path
from fourfold.errors import ModelError
from fourfold.models.gemma4 import ModuleKind, read_gemma4
from fourfold.models.gemma4_config import attention_heads
from fourfold.plan import projected_bytes
from fourfold.sizing import checkpoint_bytes, kv_cost, read_shape
from fourfold.sizing.shapes import _config_path
from fourfold.targets import resolve_targets

KEPT = {
    "all-linear": set(),
    "experts-only": {ModuleKind.ATTENTION, ModuleKind.DENSE_MLP},
    "attention-bf16": {ModuleKind.ATTENTION},
    "dense-mlp-bf16": {ModuleKind.DENSE_MLP},
}


def test_the_demo_to_the_last_parameter_and_byte() -> None:
    source, shape = TensorFolder(model_path()), read_shape("demo")
    gemma = read_gemma4(source)
    assert shape.num_parameters == sum(entry.numel for entry in source)
    real = Counter((module.layer, module.kind) for module in gemma.linears.values())
    numel: Counter[tuple[int, ModuleKind]] = Counter()
    for module in gemma.linears.values():
        numel[module.layer, module.kind] += module.numel
    for layer in shape.layers:
        for kind in ModuleKind:
            assert layer.copies(kind) == real[layer.index, kind]
            assert layer.numel(kind) == numel[layer.index, kind]
    for preset in TARGET_PRESETS:
        targets = resolve_targets(gemma, Recipe.parse({"targets": preset}, where="recipe"))
        predicted = checkpoint_bytes(shape, lambda layer, kind, kept=KEPT[preset]: kind not in kept)
        assert predicted == pytest.approx(projected_bytes(source, targets), abs=32)


def test_a_model_that_transformers_saved(tmp_path: Path) -> None:
    """``per_layer_config`` says there what Google's files say in two numbers: heads of layers 1 and 3."""
    source = TensorFolder(make_model(tmp_path / "model", pairs=2))
    assert "global_head_dim" not in source.config["text_config"]
    shape = read_shape(str(source.path))
    assert shape.num_parameters == sum(entry.numel for entry in source)
    assert [layer.key_width for layer in shape.layers] == [2 * 16, 1 * 32, 2 * 16, 1 * 32]


def test_the_26b_against_transformers_own_model() -> None:
    from transformers import AutoConfig, AutoModelForImageTextToText

    raw = json.loads(_config_path("gemma4-26b-a4b").read_text(encoding="utf-8"))
    config = AutoConfig.for_model(raw.pop("model_type"), **raw)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    model.tie_weights()
    tensors = {id(tensor): tensor for tensor in model.state_dict(keep_vars=True).values()}
    shape = read_shape("google/gemma-4-26B-A4B-it")
    assert shape.num_parameters == sum(tensor.numel() for tensor in tensors.values())
    assert shape.active_parameters / 1e9 == pytest.approx(3.8, abs=0.05)


@pytest.mark.parametrize(
    ("preset", "published"), [("all-linear", 16.4), ("experts-only", 18.8), ("attention-bf16", 18.0)]
)
def test_published_sizes_of_the_26b(preset: str, published: float) -> None:
    """RedHatAI and bg-digitalservices 16.4 to 16.5 GB, nvidia 18.8 GB, FusenAI 1.6 GB over the first."""
    shape = read_shape("gemma4-26b-a4b")
    size = checkpoint_bytes(shape, lambda layer, kind: kind not in KEPT[preset])
    assert size / 1e9 == pytest.approx(published, abs=0.1)


def test_cache_by_hand_and_its_inverse() -> None:
    cost = kv_cost(read_shape("gemma4-26b-a4b"), 2)
    assert cost.full_bytes_per_token == 5 * 2 * 2 * 512 * 2
    assert cost.sliding_bytes_per_token == 25 * 2 * 8 * 256 * 2
    small = kv_cost(read_shape("demo"), 1)
    for room in (0, 1, 5_000, 100_000, 400_000, 1_000_000):
        most = max(tokens for tokens in range(20_000) if small.bytes(tokens) <= room)
        assert small.tokens_in(room) == min(most, small.tokens_in(room)) == most


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "llama"}, "not the config of a Gemma 4 mixture-of-experts model"),
        ({"text_config": {"model_type": "gemma4_text", "enable_moe_block": True}}, "hidden_size is missing"),
    ],
)
def test_a_config_that_cannot_be_planned(config: dict[str, object], message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ModelError, match=message):
        read_shape(str(tmp_path))
    with pytest.raises(ModelError, match="no such model; give 'demo', a folder, or a hub id"):
        read_shape("no such thing")


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("text_config", {"num_hidden_layers": 8}, "text_config.layer_types does not list every layer"),
        ("text_config", {"num_hidden_layers": "6"}, "text_config.num_hidden_layers is '6', not a positive number"),
        ("text_config", {"layer_types": None}, "text_config.layer_types does not list every layer"),
        ("text_config", {"head_dim": None}, "text_config.head_dim is None, not a positive number"),
        ("text_config", {"global_head_dim": [64]}, "text_config.global_head_dim is [64], not a positive number"),
        ("text_config", {"sliding_window": None}, "text_config.sliding_window is None, not a positive number"),
        (
            "text_config",
            {"per_layer_config": {"0": {"head_dim": "x"}}},
            "text_config.per_layer_config.0.head_dim is 'x', not a positive number",
        ),
        ("text_config", None, "text_config is a NoneType, not an object"),
        ("vision_config", {"patch_size": 0}, "vision_config.patch_size is 0, not a positive number"),
        ("vision_config", "large", "vision_config is a str, not an object"),
    ],
)
def test_a_malformed_config_names_its_key(
    section: str, change: dict[str, object] | str | None, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "config.json"
    config = json.loads((model_path() / "config.json").read_text(encoding="utf-8"))
    config[section] = config[section] | change if isinstance(change, dict) else change
    path.write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ModelError) as caught:
        read_shape(str(tmp_path))
    assert str(caught.value) == f"{path}: {message}"


def test_numbers_of_layers_with_zeros_in_front() -> None:
    """Transformers pads them to one width where a model has more than ten layers."""
    from transformers import Gemma4TextConfig

    text = Gemma4TextConfig(num_hidden_layers=12, head_dim=16, global_head_dim=32).to_dict()
    assert list(text["per_layer_config"]) == ["05", "11"]
    assert [attention_heads(text, index)[0] for index in (4, 5, 11)] == [16, 32, 32]
