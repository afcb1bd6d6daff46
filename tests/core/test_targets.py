"""Patterns to modules, on the demo model's real names."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from fourfold.checkpoint.index import TensorFolder
from fourfold.config import Recipe
from fourfold.demo import model_path
from fourfold.errors import CheckpointError, ConfigError, ModelError
from fourfold.models.gemma4 import ModuleKind, read_gemma4
from fourfold.targets import resolve_targets


@pytest.fixture(scope="module")
def source() -> TensorFolder:
    return TensorFolder(model_path())


@pytest.fixture(scope="module")
def gemma(source):
    return read_gemma4(source)


@pytest.fixture
def copy(tmp_path):
    """A copy of the demo model to spoil."""
    return shutil.copytree(model_path(), tmp_path / "model")


def test_every_linear_of_the_text_layers_is_a_target(gemma):
    targets = resolve_targets(gemma, Recipe())
    experts = [m for m in targets if m.kind is ModuleKind.EXPERT]
    assert len(experts) == gemma.num_layers * gemma.num_experts * 3
    assert {m.projection for m in targets} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    }  # fmt: skip
    assert not any("vision" in m.name or "router" in m.name for m in targets)


def test_modules_read_their_part_of_the_fused_tensor(gemma, source):
    prefix = "model.language_model.layers.1.experts"
    gate_up, down = source.read(f"{prefix}.gate_up_proj"), source.read(f"{prefix}.down_proj")
    width = gate_up.shape[1] // 2
    for expert in (0, 77):
        read = {p: gemma.linears[f"{prefix}.{expert}.{p}"].read(source) for p in ("gate_proj", "up_proj", "down_proj")}
        assert torch.equal(read["gate_proj"], gate_up[expert, :width])
        assert torch.equal(read["up_proj"], gate_up[expert, width:])
        assert torch.equal(read["down_proj"], down[expert])


@pytest.mark.parametrize(
    ("targets", "kinds"),
    [
        ("experts-only", {ModuleKind.EXPERT}),
        ("attention-bf16", {ModuleKind.EXPERT, ModuleKind.DENSE_MLP}),
        ("dense-mlp-bf16", {ModuleKind.EXPERT, ModuleKind.ATTENTION}),
    ],
)
def test_presets(gemma, targets, kinds):
    assert {m.kind for m in resolve_targets(gemma, Recipe(targets=targets))} == kinds


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"exclude": ("*.mlp.experts.*",)}, r"recipe\.exclude: pattern '\*\.mlp\.experts\.\*' matches no module"),
        ({"include": ("experts",)}, r"recipe\.include: pattern 'experts' matches no module"),
        ({"exclude": ("*",)}, "the patterns exclude every module"),
        ({"exclude": ("*.self_attn.q_proj",)}, r"q_proj is left out while others of .*self_attn\.qkv are quantized"),
        ({"exclude": ("*.experts.5.*",)}, "left out while others of the experts of layer 0"),
        ({"exclude": ("*.experts.*.up_proj",)}, "a server loads them as one tensor"),
        (
            {"weights_only": ("*.router.*",)},
            r"recipe\.weights_only: pattern '\*\.router\.\*' matches no module that is",
        ),
        (
            {"weights_only": ("*.mlp.*",), "targets": "experts-only"},
            r"'\*\.mlp\.\*' matches no module that is quantized",
        ),
        ({"weights_only": ("*",)}, "the patterns cover every target; say scheme W4A16 in their place"),
        ({"weights_only": ("*.mlp.*",), "scheme": "W4A16"}, "under scheme W4A16 all modules are; leave it out"),
        (
            {"weights_only": ("*.k_proj",)},
            r"the patterns name .*k_proj and not others of .*self_attn\.qkv; a server loads them as one",
        ),
        (
            {"weights_only": ("*.experts.5.*",)},
            "experts.5.down_proj and not others of the experts of layer 0; a server loads them as one tensor",
        ),
    ],
)
def test_choices_no_server_can_load_are_refused(gemma, recipe, message):
    with pytest.raises(ConfigError, match=message):
        resolve_targets(gemma, Recipe(**recipe))


def test_a_strangers_patterns_are_bounded():
    with pytest.raises(ConfigError, match=r"recipe\.weights_only: Tuple should have at most 256 items"):
        Recipe.parse({"weights_only": ["*"] * 257}, where="recipe")
    with pytest.raises(ConfigError, match=r"recipe\.weights_only\.0: String should have at most 256 characters"):
        Recipe.parse({"weights_only": ["*" * 257]}, where="recipe")


def rewrite_config(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def refused(folder, message):
    with pytest.raises(ModelError, match=message):
        read_gemma4(TensorFolder(folder))


def test_another_architecture_is_refused(copy):
    rewrite_config(copy, lambda config: config.update(model_type="qwen3_moe"))
    refused(copy, r"not a Gemma 4 model \(model_type 'qwen3_moe'\)")


def test_a_dense_gemma_is_refused(copy):
    rewrite_config(copy, lambda config: config["text_config"].update(enable_moe_block=False))
    refused(copy, "a dense Gemma 4 model")


def test_a_quantized_model_is_refused(copy):
    rewrite_config(copy, lambda config: config.update(quantization_config={"quant_method": "modelopt"}))
    refused(copy, r"already quantized \(modelopt\); give the unquantized model")


def test_experts_under_an_unknown_name_are_refused_with_their_share(copy, gemma):
    renamed = 0
    for shard in copy.glob("*.safetensors"):
        tensors = load_file(shard)
        renamed += sum(t.numel() for name, t in tensors.items() if ".experts." in name)
        save_file({name.replace(".experts.", ".moe_ffn."): t for name, t in tensors.items()}, shard)
    index = (copy / "model.safetensors.index.json").read_text().replace(".experts.", ".moe_ffn.")
    (copy / "model.safetensors.index.json").write_text(index)
    share = 100 * renamed / gemma.num_parameters
    refused(copy, rf"fused experts under a name Fourfold does not know; quantizing would skip {share:.1f} %")


def test_a_truncated_shard_names_the_file(copy):
    shard = sorted(copy.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=rf"{shard.name}: not a whole safetensors file"):
        TensorFolder(copy)
