"""The committed weights: every structural trait of the 26B, the size limits, and what the model can do."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import torch
from safetensors import safe_open

from fourfold.demo import held_out, model_path
from fourfold.demo.architecture import write_processor
from fourfold.demo.evaluate import evaluate

LAYERS = "model.language_model.layers"
FULL_LAYERS = (2, 5)
#: Task -> the share of correct answers the model must reach in BF16.
THRESHOLDS = {"math": 0.85, "instruct": 0.85, "vision": 0.95, "clip": 0.95}


@pytest.fixture(scope="module")
def shapes() -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape, from the shards' headers; every tensor must be BF16."""
    found: dict[str, tuple[int, ...]] = {}
    for shard in sorted(model_path().glob("*.safetensors")):
        with safe_open(shard, "pt") as file:
            for name in file.keys():  # noqa: SIM118 (a safetensors handle is no mapping)
                tensor = file.get_slice(name)
                assert tensor.get_dtype() == "BF16", name
                found[name] = tuple(tensor.get_shape())
    return found


def test_the_folder_holds_at_most_24_mb_of_weights_and_no_file_over_12_mb() -> None:
    sizes = {path.name: path.stat().st_size for path in model_path().iterdir()}
    assert max(sizes.values()) <= 12_000_000
    assert sum(size for name, size in sizes.items() if name.endswith(".safetensors")) <= 24_000_000
    assert "checkpoint.pt" not in sizes


def test_fused_experts_hold_most_of_the_parameters(shapes: dict[str, tuple[int, ...]]) -> None:
    count = {name: torch.Size(shape).numel() for name, shape in shapes.items()}
    fused = sum(number for name, number in count.items() if ".experts." in name)
    assert fused / sum(count.values()) >= 0.80


def test_tensor_names_and_shapes_are_the_26bs(shapes: dict[str, tuple[int, ...]]) -> None:
    for layer in range(6):
        prefix = f"{LAYERS}.{layer}"
        assert shapes[f"{prefix}.experts.gate_up_proj"] == (128, 2 * 48, 96)
        assert shapes[f"{prefix}.experts.down_proj"] == (128, 96, 48)
        assert shapes[f"{prefix}.router.proj.weight"] == (128, 96)
        assert shapes[f"{prefix}.router.scale"] == (96,)
        assert shapes[f"{prefix}.router.per_expert_scale"] == (128,)
        assert shapes[f"{prefix}.mlp.gate_proj.weight"] == shapes[f"{prefix}.mlp.up_proj.weight"] == (192, 96)
        assert shapes[f"{prefix}.layer_scalar"] == (1,)
        full = layer in FULL_LAYERS
        heads, kv_heads, head_dim = (4, 1, 64) if full else (4, 2, 32)
        assert shapes[f"{prefix}.self_attn.q_proj.weight"] == (heads * head_dim, 96)
        assert shapes[f"{prefix}.self_attn.k_proj.weight"] == (kv_heads * head_dim, 96)
        assert (f"{prefix}.self_attn.v_proj.weight" in shapes) is not full, "K is V on full layers, and only there"
    assert "lm_head.weight" not in shapes, "embeddings are tied"
    assert not [name for name in shapes if "audio" in name]
    assert {name.split(".")[1] for name in shapes} == {"language_model", "vision_tower", "embed_vision"}


def test_widths_are_multiples_of_16_and_the_expert_width_an_odd_one(shapes: dict[str, tuple[int, ...]]) -> None:
    quantizable = re.compile(rf"{LAYERS}\.\d+\.(self_attn\.[qkvo]_proj|mlp\..*_proj|experts\..*_proj)")
    widths = {shape[-1] for name, shape in shapes.items() if quantizable.match(name)}
    assert len(widths) > 2
    assert all(width % 16 == 0 for width in widths)
    assert 48 in widths
    assert (48 // 16) % 2 == 1


def test_every_structural_trait_of_the_26b(demo_model: tuple[Any, Any]) -> None:
    model, _ = demo_model
    text = model.config.text_config
    assert type(model).__name__ == "Gemma4ForConditionalGeneration"
    assert (text.enable_moe_block, text.num_experts, text.top_k_experts) == (True, 128, 8)
    assert text.layer_types[-1] == "full_attention"
    assert set(text.layer_types) == {"sliding_attention", "full_attention"}
    assert text.attention_k_eq_v is True
    assert text.use_bidirectional_attention == "vision"
    assert text.final_logit_softcapping == 30.0
    assert text.num_kv_shared_layers == 0
    assert text.hidden_size_per_layer_input == 0
    assert model.config.tie_word_embeddings
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert model.config.audio_config is None
    assert len(model.model.vision_tower.encoder.layers) == 3
    assert model.config.vision_config.standardize
    layers = model.model.language_model.layers
    for index, layer in enumerate(layers):
        assert layer.self_attn.head_dim == (64 if index in FULL_LAYERS else 32)
        assert layer.self_attn.is_sliding is (index not in FULL_LAYERS)
        assert layer.mlp is not None
        assert layer.experts is not None
    assert all(float(layer.layer_scalar) != 1.0 for layer in layers)
    assert len({float(layer.layer_scalar) for layer in layers}) == len(layers), "trained, so no two are equal"
    assert all(layer.router.per_expert_scale.float().std() > 0.01 for layer in layers)


def test_logits_are_capped(demo_model: tuple[Any, Any]) -> None:
    model, processor = demo_model
    inputs = processor.tokenizer(held_out("prose", 1)[0].target, return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits
        hidden = model.model(**inputs).last_hidden_state
        uncapped = model.lm_head(hidden).float()
    assert logits.abs().max() < 30.0
    torch.testing.assert_close(logits.float(), 30 * torch.tanh(uncapped / 30), atol=0.2, rtol=0.02)


@pytest.mark.parametrize("task", THRESHOLDS)
def test_fifty_held_out_problems_are_solved_within_binomial_error(demo_model: tuple[Any, Any], task: str) -> None:
    model, processor = demo_model
    result = evaluate(model, processor, task, held_out(task, 50), batch_size=50)
    assert result["n"] == 50
    assert result["wilson_95"][1] >= THRESHOLDS[task], result


def test_prose_is_predicted(demo_model: tuple[Any, Any]) -> None:
    model, processor = demo_model
    result = evaluate(model, processor, "prose", held_out("prose", 50), batch_size=25)
    card = {line["task"]: line for line in evaluation_lines()}["prose"]
    assert result["nll_per_token"] == pytest.approx(card["nll_per_token"], abs=6 * result["nll_standard_error"])
    assert result["perplexity"] < 1.7


def evaluation_lines() -> list[dict[str, Any]]:
    return [json.loads(line) for line in (model_path() / "evaluation.jsonl").read_text().splitlines()]


def test_the_card_states_the_figures_that_were_measured() -> None:
    card = (model_path() / "README.md").read_text()
    lines = evaluation_lines()
    assert {line["task"] for line in lines} == {*THRESHOLDS, "prose"}
    for line in lines:
        assert (line["n"], line["split"], line["seed"]) == (1000, "test", 0)
        if line["task"] == "prose":
            assert f"{line['perplexity']:.3f}" in card
        else:
            assert line["score"] >= THRESHOLDS[line["task"]]
            low, high = line["wilson_95"]
            assert f"| {line['task']} | {line['score']:.1%} | {low:.1%} - {high:.1%} |" in card


def test_no_expert_is_dead_and_the_card_says_how_even_routing_is() -> None:
    card = (model_path() / "README.md").read_text()
    report = json.loads((model_path() / "training.json").read_text())
    assert len(report["tokens_per_expert"]) == 6
    for row in report["tokens_per_expert"]:
        assert row["min"] > 0.2 * row["mean"]
        assert f"| {row['layer']} | {row['min']:,} | {row['max']:,} | {row['mean']:,.0f} |" in card


def test_the_processor_files_are_what_the_code_writes(tmp_path: Any) -> None:
    write_processor(tmp_path)
    for written in tmp_path.iterdir():
        assert (model_path() / written.name).read_bytes() == written.read_bytes(), written.name
