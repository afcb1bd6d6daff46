"""The demo model cut small: trained weights, its tokenizer, two layers, sixteen experts. It computes nonsense."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from fourfold.checkpoint.index import TensorFolder
from fourfold.demo import model_path

#: A sliding and a full layer, in their new order.
LAYERS = (0, 2)
NUM_EXPERTS, TOP_K = 16, 4
_OF_A_LAYER = re.compile(r"(?<=language_model\.layers\.)\d+")
_BY_EXPERT = ("experts.gate_up_proj", "experts.down_proj", "router.proj.weight", "router.per_expert_scale")


def cut_demo(folder: Path) -> Path:
    """Write the cut model with the demo's side files into ``folder`` and return it."""
    source = TensorFolder(model_path())
    folder.mkdir(parents=True)
    tensors: dict[str, torch.Tensor] = {}
    for entry in source:
        layer = _OF_A_LAYER.search(entry.name)
        if layer and int(layer[0]) not in LAYERS:
            continue
        name = _OF_A_LAYER.sub(lambda match: str(LAYERS.index(int(match[0]))), entry.name)
        tensor = source.read(entry.name)
        tensors[name] = tensor[:NUM_EXPERTS].clone() if name.endswith(_BY_EXPERT) else tensor.clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((source.path / "config.json").read_text())
    text = config["text_config"]
    text |= {"num_hidden_layers": len(LAYERS), "num_experts": NUM_EXPERTS, "top_k_experts": TOP_K}
    text["layer_types"] = [text["layer_types"][layer] for layer in LAYERS]
    (folder / "config.json").write_text(json.dumps(config))
    for side_file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "processor_config.json",
                      "generation_config.json"):  # fmt: skip
        shutil.copy(source.path / side_file, folder)
    return folder
