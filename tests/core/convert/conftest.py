"""A small Gemma 4 MoE quantized with the codec, exported by the two exporters that convert also uses."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import fourfold_llmcompressor.hooks
import fourfold_modelopt.hooks
from fourfold.artifact import Artifact, ArtifactWriter
from fourfold.checkpoint.index import TensorFolder
from fourfold.config import KVCache, Recipe, Scheme
from fourfold.interfaces.quantizer import QuantizeJob
from fourfold.models.gemma4 import read_gemma4
from fourfold.nvfp4 import quantize
from fourfold.plugins import Registry, Role, build_plugin_manager
from fourfold.progress import NoProgress

BASE = "model.language_model.layers.0"
DOWN = f"{BASE}.experts.2.down_proj"
LAYOUTS = ("modelopt", "compressed-tensors")
EXPERTS, HIDDEN, WIDTH = 4, 32, 16
SIDE_FILES = {"tokenizer.json": "{}", "chat_template.jinja": "{{ messages }}", "generation_config.json": "{}"}

MakeCheckpoint = Callable[..., Path]


@pytest.fixture(scope="session")
def registry() -> Registry:
    return Registry(build_plugin_manager([fourfold_modelopt.hooks, fourfold_llmcompressor.hooks]))


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    generator = torch.Generator().manual_seed(7)

    def random(*shape: int) -> torch.Tensor:
        return (torch.randn(shape, generator=generator) * 0.05).to(torch.bfloat16)

    tensors = {f"{BASE}.self_attn.{p}_proj.weight": random(HIDDEN, HIDDEN) for p in "qkvo"}
    tensors |= {f"{BASE}.mlp.{p}_proj.weight": random(48, HIDDEN) for p in ("gate", "up")}
    tensors |= {
        f"{BASE}.mlp.down_proj.weight": random(HIDDEN, 48),
        f"{BASE}.experts.gate_up_proj": random(EXPERTS, 2 * WIDTH, HIDDEN),
        f"{BASE}.experts.down_proj": random(EXPERTS, HIDDEN, WIDTH),
        f"{BASE}.router.proj.weight": random(EXPERTS, HIDDEN),
        "model.language_model.embed_tokens.weight": random(16, HIDDEN),
        "model.vision_tower.encoder.layers.0.self_attn.q_proj.linear.weight": random(16, 16),
    }
    save_file(tensors, folder / "model.safetensors")
    config = {
        "model_type": "gemma4",
        "architectures": ["Gemma4ForConditionalGeneration"],
        "text_config": {
            "enable_moe_block": True,
            "hidden_size": HIDDEN,
            "moe_intermediate_size": WIDTH,
            "num_experts": EXPERTS,
            "num_hidden_layers": 1,
            "top_k_experts": 2,
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    for name, text in SIDE_FILES.items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture(scope="session")
def artifacts(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Recipe], Artifact]:
    made: dict[str, Artifact] = {}

    def artifact(recipe: Recipe) -> Artifact:
        if recipe.sha256() not in made:
            made[recipe.sha256()] = _make_artifact(source, tmp_path_factory.mktemp("artifact"), recipe)
        return made[recipe.sha256()]

    return artifact


def _make_artifact(source: Path, path: Path, recipe: Recipe) -> Artifact:
    folder = TensorFolder(source)
    gemma = read_gemma4(folder)
    targets = tuple(m for m in gemma.linears.values() if recipe.targets == "all-linear" or m.expert is not None)
    job = QuantizeJob(
        model_path=source, source=folder, gemma=gemma, targets=targets, recipe=recipe, tokens=None, batch_size=1,
        unfuser_name="reference", unfuser=None, device="cpu", seed=0,
    )  # fmt: skip
    writer = ArtifactWriter(path, job)
    for number, module in enumerate(job.targets):
        scale = 0.0001 * (number + 1) if recipe.scheme_of(module.name) is Scheme.W4A4 else None
        writer.add_weight(module, quantize(module.read(folder)), scale)
    if recipe.kv_cache is KVCache.FP8:
        writer.add_kv_scales(f"{BASE}.self_attn", 0.25, 0.5)
    component = {"name": "test"}
    packages = {"fourfold": version("fourfold")}
    writer.finish({"source_files": {}, "unfuser": component, "quantizer": component, "packages": packages})
    return Artifact(path)


@pytest.fixture
def checkpoint(artifacts: Callable[[Recipe], Artifact], registry: Registry, tmp_path: Path) -> MakeCheckpoint:
    """Export in a layout; ``edit`` changes the tensors afterwards, ``config`` updates ``config.json``."""

    def make(layout: str, *, edit: Callable[..., object] | None = None, **recipe: object) -> Path:
        folder = tmp_path / f"{layout}-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        artifact = artifacts(Recipe(**recipe))
        registry.load(Role.EXPORTER, layout)(registry.get(Role.EXPORTER, layout).options()).export(
            artifact, folder, NoProgress()
        )
        if edit is not None:
            tensors = load_file(folder / "model.safetensors")
            edit(tensors)
            save_file(tensors, folder / "model.safetensors")
        return folder

    return make
