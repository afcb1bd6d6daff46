"""Small Gemma 4 MoE models and what quantizers make of them, written by the same parts that production uses."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file

from fourfold.artifact import Artifact, ArtifactWriter
from fourfold.checkpoint.index import TensorFolder
from fourfold.checkpoint.layouts import LAYOUTS
from fourfold.config import Recipe, Scheme
from fourfold.export import write_checkpoint
from fourfold.interfaces.quantizer import QuantizeJob
from fourfold.models.gemma4 import LinearModule, read_gemma4
from fourfold.nvfp4 import BlockScalePolicy, NVFP4Weight, encode_scale_from_amax, quantize
from fourfold.progress import NoProgress

LAYERS, EXPERTS, HIDDEN, WIDTH = 2, 4, 64, 32
PREFIX = "model.language_model.layers"
GATE = f"{PREFIX}.0.experts.1.gate_proj"
UP = f"{PREFIX}.0.experts.1.up_proj"
DOWN = f"{PREFIX}.1.experts.2.down_proj"
Q_PROJ = f"{PREFIX}.1.self_attn.q_proj"
ROUTER = f"{PREFIX}.0.router.proj.weight"


def source_tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return (torch.randn(shape, generator=generator) * 0.05).to(torch.bfloat16)

    tensors = {
        "model.language_model.embed_tokens.weight": random(32, HIDDEN),
        "model.vision_tower.encoder.layers.0.self_attn.q_proj.linear.weight": random(16, 32),
    }
    for layer in range(LAYERS):
        base = f"{PREFIX}.{layer}"
        tensors |= {f"{base}.self_attn.{p}_proj.weight": random(HIDDEN, HIDDEN) for p in "qkvo"}
        tensors |= {f"{base}.mlp.{p}_proj.weight": random(96, HIDDEN) for p in ("gate", "up")}
        tensors[f"{base}.mlp.down_proj.weight"] = random(HIDDEN, 96)
        tensors[f"{base}.experts.gate_up_proj"] = random(EXPERTS, 2 * WIDTH, HIDDEN)
        tensors[f"{base}.experts.down_proj"] = random(EXPERTS, HIDDEN, WIDTH)
        tensors[f"{base}.router.proj.weight"] = random(EXPERTS, HIDDEN)
        tensors[f"{base}.layer_scalar"] = torch.tensor([0.5], dtype=torch.bfloat16)
    return tensors


def write_source(folder: Path, tensors: Mapping[str, torch.Tensor], **sizes: int) -> Path:
    """``sizes`` replace those of the small model in ``text_config``."""
    folder.mkdir(parents=True)
    config = {
        "model_type": "gemma4",
        "text_config": {
            "enable_moe_block": True,
            "hidden_size": HIDDEN,
            "moe_intermediate_size": WIDTH,
            "num_experts": EXPERTS,
            "num_hidden_layers": LAYERS,
            "top_k_experts": 2,
        }
        | sizes,
    }
    (folder / "config.json").write_text(json.dumps(config))
    save_file(dict(tensors), folder / "model.safetensors")
    return folder


Edit = Callable[[NVFP4Weight], NVFP4Weight]


@dataclass
class Make:
    """How an artifact is made: a policy, whose amax, and edits to single modules."""

    policy: BlockScalePolicy = BlockScalePolicy.FOURFOLD
    scheme: Scheme = Scheme.W4A4
    share: bool = True
    #: Module -> factor on the amax its global scale is taken from.
    amax: Mapping[str, float] = field(default_factory=dict)
    own_amax: frozenset[str] = frozenset()
    edits: Mapping[str, Edit] = field(default_factory=dict)
    #: Module -> input amax; 2.0 where nothing is said. BF16 arithmetic under the policy ``compressed-tensors``.
    inputs: Mapping[str, float] = field(default_factory=dict)
    fallbacks: tuple[str, ...] = ()


def make_artifact(source_path: Path, folder: Path, make: Make) -> Artifact:
    source = TensorFolder(source_path)
    gemma = read_gemma4(source)
    job = QuantizeJob(
        model_path=source_path,
        source=source,
        gemma=gemma,
        targets=tuple(gemma.linears.values()),
        recipe=Recipe(scheme=make.scheme),
        tokens=None,
        batch_size=1,
        unfuser_name="reference",
        unfuser=None,
        device="cpu",
        seed=0,
    )
    groups: dict[str, list[torch.Tensor]] = {}
    for module in job.targets:
        groups.setdefault(module.scale_group, []).append(module.read(source).abs().amax())
    folder.mkdir(parents=True)
    writer = ArtifactWriter(folder, job)
    for module in job.targets:
        _add(writer, module, module.read(source), torch.stack(groups[module.scale_group]).amax(), make)
    for name in make.fallbacks:
        writer.record_fallback(name, "layer-max", "saw 0 tokens")
    component = {"name": "test"}
    facts = {"source_files": {}, "unfuser": component, "quantizer": component, "packages": {}}
    writer.finish(facts)
    return Artifact(folder)


def _add(writer: ArtifactWriter, module: LinearModule, weight: torch.Tensor, shared: torch.Tensor, make: Make) -> None:
    amax = shared if make.share and module.name not in make.own_amax else weight.abs().amax()
    amax = (amax * make.amax.get(module.name, 1.0)).to(weight.dtype)
    stored = quantize(weight, global_amax=amax, policy=make.policy)
    stored = make.edits.get(module.name, lambda w: w)(stored)
    input_amax = torch.tensor(make.inputs.get(module.name, 2.0), dtype=torch.bfloat16)
    encode = input_encode = None
    if make.policy is BlockScalePolicy.COMPRESSED_TENSORS:
        encode, input_encode = encode_scale_from_amax(amax), encode_scale_from_amax(input_amax)
    input_scale = input_amax.float() / 2688 if input_encode is None else input_encode.reciprocal()
    if make.scheme is Scheme.W4A16:
        input_scale = input_encode = None
    writer.add_weight(module, stored, input_scale, encode_scale=encode, input_encode_scale=input_encode)


def export(artifact: Artifact, folder: Path, layout: str) -> Path:
    folder.mkdir(parents=True)
    config = artifact.source_config | {"quantization_config": {"quant_method": layout}}
    write_checkpoint(artifact, folder, LAYOUTS[layout], {"config.json": config}, NoProgress())
    return folder
