"""The other side of the comparison: Transformers in float32, with a decoder and a fake quantization of its own.

Written from the format's definition, in NumPy and float64 where the plugin uses torch and float32, and shares no code
with the plugin or with ``fourfold.nvfp4``. A rounding is decided by comparing with the middles between grid values.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors.torch import load_file
from torch.nn import functional

Activations = Literal["per-expert", "merged", "none"]
GRID = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
MIDDLES = (GRID[1:] + GRID[:-1]) / 2
EXPERT = re.compile(r"(.*\.experts)\.\d+\.(gate|up|down)_proj")


@dataclass
class Module:
    """One quantized module as stored; ``encode`` is what activations are multiplied with, None for W4A16."""

    packed: np.ndarray
    block_scale: np.ndarray
    global_scale: float
    encode: np.float32 | None

    def decode(self) -> torch.Tensor:
        """float32 [O, K]."""
        codes = np.stack([self.packed & 15, self.packed >> 4], axis=-1).reshape(len(self.packed), -1)
        values = np.where(codes & 8, -1.0, 1.0) * GRID[codes & 7]
        scale = self.block_scale.astype(np.float64) * self.global_scale
        return torch.from_numpy((values.reshape(len(values), -1, 16) * scale[..., None]).reshape(values.shape)).float()


def read(folder: Path) -> tuple[dict[str, Module], dict[str, torch.Tensor]]:
    """Quantized modules by name and every other tensor."""
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    modules: dict[str, Module] = {}
    for key in list(tensors):
        name, _, suffix = key.rpartition(".")
        if suffix not in ("weight_scale_2", "weight_global_scale"):
            continue
        modelopt = suffix == "weight_scale_2"
        packed = tensors.pop(f"{name}.weight" if modelopt else f"{name}.weight_packed")
        scale, stored = tensors.pop(f"{name}.weight_scale").float().numpy(), float(tensors.pop(key))
        given = tensors.pop(f"{name}.input_scale" if modelopt else f"{name}.input_global_scale", None)
        encode = None if given is None else np.float32(given.item())
        if modelopt:
            modules[name] = Module(packed.numpy(), scale, stored, None if encode is None else np.float32(1) / encode)
        else:
            modules[name] = Module(packed.numpy(), scale, 1 / stored, encode)
    return modules, tensors


def merge_experts(modules: dict[str, Module]) -> None:
    """One input scale for all gate and up projections of a layer, one for all down projections: the largest."""
    layers = defaultdict(list)
    for name, module in modules.items():
        if module.encode is not None and (match := EXPERT.fullmatch(name)):
            layers[match[1], match[2] == "down"].append(module)
    for members in layers.values():
        smallest = min(module.encode for module in members)
        for module in members:
            module.encode = smallest


def fake_quantize(x: torch.Tensor, encode: np.float32) -> torch.Tensor:
    """NVFP4 there and back along the last axis, float32."""
    factor = torch.tensor(encode)
    blocks = x.reshape(*x.shape[:-1], -1, 16)
    scale = (factor * (blocks.abs().amax(-1, keepdim=True) * np.float32(1 / 6))).clamp(max=448)
    scale = scale.to(torch.float8_e4m3fn).float()
    inverse = torch.where(scale == 0, torch.zeros(()), 1 / (scale * (1 / factor)))
    scaled = (blocks * inverse).clamp(-6, 6).double().numpy()
    below, above = (np.searchsorted(MIDDLES, np.abs(scaled), side=side) for side in ("left", "right"))
    codes = np.where(below % 2 == 0, below, above)
    return (torch.from_numpy(np.sign(scaled) * GRID[codes]).float() * (scale / factor)).reshape(x.shape)


def build(folder: Path, activations: Activations) -> torch.nn.Module:
    """The checkpoint in float32 with its roundings."""
    from transformers import AutoConfig, Gemma4ForConditionalGeneration

    modules, tensors = read(folder)
    if activations == "merged":
        merge_experts(modules)
    config = AutoConfig.from_pretrained(folder)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    for part in (config, config.text_config, config.vision_config):
        part.dtype = torch.float32  # or the embedding's factor is computed in BF16
    model = Gemma4ForConditionalGeneration(config).float().eval()
    for name, child in model.named_modules():
        if isinstance(child, torch.nn.Linear) and name in modules:
            tensors[f"{name}.weight"] = modules[name].decode()
            if activations != "none" and modules[name].encode is not None:
                round_input(child, modules[name].encode)
        if name.endswith(".experts") and f"{name}.0.gate_proj" in modules:
            members = [
                [modules[f"{name}.{e}.{p}_proj"] for p in ("gate", "up", "down")] for e in range(child.num_experts)
            ]
            tensors[f"{name}.gate_up_proj"] = torch.stack([torch.cat([g.decode(), u.decode()]) for g, u, _ in members])
            tensors[f"{name}.down_proj"] = torch.stack([down.decode() for _, _, down in members])
            if activations != "none" and members[0][0].encode is not None:
                round_experts(child, members)
    tensors["lm_head.weight"] = tensors["model.language_model.embed_tokens.weight"]
    kept = {name: tensor.float() for name, tensor in tensors.items() if not name.endswith(("k_scale", "v_scale"))}
    result = model.load_state_dict(kept, strict=False)
    assert not result.unexpected_keys and not result.missing_keys, result
    return model


def round_input(linear: torch.nn.Linear, encode: np.float32) -> None:
    linear.register_forward_pre_hook(lambda _, arguments: (fake_quantize(arguments[0], encode),))


def round_experts(experts: torch.nn.Module, members: list[list[Module]]) -> None:
    def forward(hidden, indices, weights):
        out = torch.zeros_like(hidden)
        for expert in indices.unique().tolist():
            gate, up, down = members[expert]
            token, rank = torch.where(indices == expert)
            x = fake_quantize(hidden[token], min(gate.encode, up.encode))
            gated, raised = functional.linear(x, experts.gate_up_proj[expert]).chunk(2, dim=-1)
            y = fake_quantize(experts.act_fn(gated) * raised, down.encode)
            y = functional.linear(y, experts.down_proj[expert])
            out.index_add_(0, token, y * weights[token, rank, None])
        return out

    experts.forward = forward


@torch.no_grad()
def log_probs(model: torch.nn.Module, inputs: list[dict[str, torch.Tensor]]) -> list[np.ndarray]:
    """Log-probabilities [positions after the first, vocabulary] of each prompt."""
    return [torch.log_softmax(model(**item).logits[0, :-1].float(), -1).numpy() for item in inputs]
