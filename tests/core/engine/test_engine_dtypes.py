"""A model that is stored in float32: computed in BF16 as its config says, rounded from what is stored."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from .jobs import Bench, differing

PARTS = (".packed_weight", ".block_scale", ".global_scale", ".input_global_scale")


def in_float32(model: Path, folder: Path) -> Path:
    shutil.copytree(model, folder)
    for shard in folder.glob("*.safetensors"):
        save_file({name: tensor.float() for name, tensor in load_file(shard).items()}, shard, {"format": "pt"})
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        record = json.loads(index.read_text(encoding="utf-8"))
        index.write_text(json.dumps({"weight_map": record["weight_map"]}), encoding="utf-8")
    return folder


@pytest.mark.parametrize("options", [{}, {"stream": True}, {"algorithm": "gptq"}], ids=["max", "streamed", "gptq"])
def test_the_same_numbers_in_float32_give_the_same_weights(registry, small: Bench, tmp_path: Path, options) -> None:
    ours = small.quantize(**options)
    wide = Bench(registry, in_float32(small.model, tmp_path / "float32"), small.tokens, tmp_path / "wide")
    theirs = wide.quantize(**options)
    quantized = {name for name in ours.tensors.tensors if name.endswith(PARTS)}
    assert len(quantized) > 100
    assert quantized.isdisjoint(differing(ours, theirs))
    kept = {name: theirs.tensors.read(name) for name in theirs.tensors.tensors if name not in quantized}
    assert {tensor.dtype for tensor in kept.values()} == {torch.float32}
