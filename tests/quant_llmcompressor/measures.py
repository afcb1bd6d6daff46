"""What the tests measure a model by: inputs of its linears, outputs of a module, what an unfuser leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModelForImageTextToText

from fourfold.artifact import Artifact
from fourfold.calibration.tokens import TokenSet
from fourfold.config import Options
from fourfold.nvfp4 import fake_quantize_activations
from fourfold.reference.options import ReferenceUnfuserOptions
from fourfold.reference.unfuser import ReferenceUnfuser


def load(model: Path) -> Any:
    return AutoModelForImageTextToText.from_pretrained(model, dtype=torch.bfloat16, attn_implementation="eager")


def load_unfused(model: Path) -> Any:
    loaded = load(model)
    ReferenceUnfuser(ReferenceUnfuserOptions()).unfuse(loaded)
    return loaded.eval()


@torch.no_grad()
def run(model: nn.Module, tokens: TokenSet) -> None:
    for batch in tokens.batches(2):
        model(**batch._asdict(), use_cache=False)


def inputs(model: Path, folder: Path, job: dict[str, Any], tokens: TokenSet) -> None:
    """Of every text linear: the Gram matrix [K, K] of its inputs and their largest value [], float32."""
    loaded = load_unfused(model)
    grams: dict[str, torch.Tensor] = {}
    largest: dict[str, torch.Tensor] = {}

    def watch(name: str) -> Any:
        def hook(_module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            x = args[0].reshape(-1, args[0].shape[-1]).float()
            grams[name] = grams.get(name, 0) + x.T @ x
            largest[name] = torch.maximum(largest.get(name, torch.tensor(0.0)), x.abs().max())

        return hook

    for name, module in loaded.named_modules():
        if isinstance(module, nn.Linear) and ".language_model.layers." in name:
            module.register_forward_pre_hook(watch(name))
    run(loaded, tokens)
    save_file({f"{n}.gram": g for n, g in grams.items()}, folder / "grams.safetensors")
    save_file(largest, folder / "amax.safetensors")


def output_errors(model: Path, folder: Path, job: dict[str, Any], tokens: TokenSet) -> None:
    """Mean square error of one module's output in W4A4, by our codec, for each artifact of an earlier job.

    What stands before the module is unquantized; inside, weights and activations are the artifact's.
    """
    expected = outputs_of(load_unfused(model), job["module"], tokens)
    errors = {}
    for name in job["of"]:
        loaded = load_unfused(model)
        emulate(loaded, job["module"], Artifact(folder.parent / name / "artifact"))
        found = outputs_of(loaded, job["module"], tokens)
        errors[name] = float((found - expected).square().mean())
    (folder / "errors.json").write_text(json.dumps(errors))


def outputs_of(loaded: nn.Module, module: str, tokens: TokenSet) -> torch.Tensor:
    """All outputs of ``module``, float32 [T, H]."""
    outputs: list[torch.Tensor] = []
    watched = loaded.get_submodule(module)
    handle = watched.register_forward_hook(lambda _module, _args, out: outputs.append(out.reshape(-1, out.shape[-1])))
    run(loaded, tokens)
    handle.remove()
    return torch.cat(outputs).float()


@torch.no_grad()
def emulate(loaded: nn.Module, module: str, artifact: Artifact) -> None:
    """Give the linears in ``module`` the artifact's decoded weights, and NVFP4 activations."""
    for name in artifact.manifest.quantized_modules:
        if not name.startswith(f"{module}."):
            continue
        linear = loaded.get_submodule(name)
        linear.weight.copy_(artifact.weight(name).dequantize(torch.bfloat16))
        scale = artifact.input_global_scale(name)
        assert scale is not None

        def quantize(_module: nn.Module, args: tuple[torch.Tensor, ...], scale: torch.Tensor = scale) -> Any:
            return (fake_quantize_activations(args[0], scale),) if args[0].numel() else None

        linear.register_forward_pre_hook(quantize)


def unfuser(model: Path, folder: Path, job: dict[str, Any]) -> None:
    """Un-fuse and fuse with llm-compressor's experts: names, equal slices, equal parameters in the end."""
    from fourfold_llmcompressor.unfuser import LinearizedExperts

    loaded = load(model)
    before = {name: tensor.clone() for name, tensor in loaded.state_dict().items()}
    backend = LinearizedExperts(Options())
    backend.unfuse(loaded)
    ours = load_unfused(model)
    linears = {n: m for n, m in ours.named_modules() if isinstance(m, nn.Linear)}
    theirs = {n: m for n, m in loaded.named_modules() if isinstance(m, nn.Linear)}
    equal = {n for n in linears.keys() & theirs.keys() if torch.equal(linears[n].weight, theirs[n].weight)}
    backend.fuse(loaded)
    after = loaded.state_dict()
    report = {
        "names_equal": linears.keys() == theirs.keys(),
        "num_equal": len(equal),
        "num_linears": len(linears),
        "restored": before.keys() == after.keys() and all(torch.equal(before[n], after[n]) for n in before),
    }
    (folder / "report.json").write_text(json.dumps(report))


def unfuser_dtype(model: Path, folder: Path, job: dict[str, Any]) -> None:
    """A config that states another dtype than the weights have."""
    from fourfold_llmcompressor.unfuser import LinearizedExperts

    loaded = load(model)
    loaded.config.text_config.dtype = torch.float32
    LinearizedExperts(Options()).unfuse(loaded)


def unfuser_nothing(model: Path, folder: Path, job: dict[str, Any]) -> None:
    """A model whose experts are un-fused already."""
    from fourfold_llmcompressor.unfuser import LinearizedExperts

    LinearizedExperts(Options()).unfuse(load_unfused(model))
