"""A model that lacks what its config describes is refused: what is made of it would be like its source, and wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from fourfold.demo import model_path

PREFIX = "model.language_model.layers"


def without(folder: Path, tensor: str) -> None:
    index = folder / "model.safetensors.index.json"
    record = json.loads(index.read_text(encoding="utf-8"))
    shard = folder / record["weight_map"].pop(tensor)
    kept = {name: value for name, value in load_file(shard).items() if name != tensor}
    save_file(kept, shard, {"format": "pt"})
    index.write_text(json.dumps(record), encoding="utf-8")


def one_layer_less(folder: Path) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["text_config"] |= {"num_hidden_layers": 5, "layer_types": config["text_config"]["layer_types"][:5]}
    path.write_text(json.dumps(config), encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (f"{PREFIX}.0.mlp.up_proj.weight", "layers.0.mlp.up_proj.weight is not there, though config.json describes it"),
        (f"{PREFIX}.0.router.proj.weight", "layers.0.router.proj.weight is not there"),
        (f"{PREFIX}.0.input_layernorm.weight", "layers.0.input_layernorm.weight is not there"),
        (f"{PREFIX}.1.self_attn.q_proj.weight", "layers.1.self_attn.q_proj.weight is not there"),
        (one_layer_less, "belongs to no layer, as config.json says that there are 5"),
    ],
    ids=["a linear", "a router", "a norm", "queries", "a layer too many"],
)
def test_an_incomplete_source_is_refused(cli, tmp_path: Path, damage, message: str) -> None:
    model = shutil.copytree(model_path(), tmp_path / "model")
    damage(model) if callable(damage) else without(model, damage)
    for command in (
        ("quantize", str(model), "--output", str(tmp_path / "out"), "--quantizer", "reference", "--scheme", "W4A16"),
        ("verify", str(model), "--source", str(model)),
    ):
        result = cli(*command)
        assert result.returncode == 2
        assert message in " ".join(result.stderr.split())
