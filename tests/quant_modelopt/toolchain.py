"""Runs in ModelOpt's environment: does the jobs of one JSON file and leaves results on disk for the tests to read.

See :mod:`toolchain_jobs.inside`. Actions: ``quantize`` (ours, to NAME/artifact and NAME/checkpoint), ``modelopt``
(ModelOpt alone, from wildcard patterns to ``export_hf_checkpoint``, none of our code but the unfuser), ``inputs``
(BF16 inputs of named modules), and single measurements.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from fourfold.artifact import Artifact, ArtifactWriter
from fourfold.checkpoint.index import TensorFolder
from fourfold.config import Options
from fourfold.progress import NoProgress
from fourfold_modelopt.options import ModelOptOptions
from fourfold_modelopt.unfuser import ModelOptUnfuser
from toolchain_jobs.inside import (
    Job,
    do_jobs,
    make_job,
    make_model,
    reference_unfuser,
    token_set,
    tokens_of,
    with_zero_expert,
    write_artifact,
)


def unfuser(name: str) -> Any:
    return reference_unfuser() if name == "reference" else ModelOptUnfuser(Options())


def quantize(model: Path, folder: Path, job: Job) -> None:
    """Our quantizer, then our exporter; and every target as ModelOpt's own tensor class decodes it."""
    from fourfold_modelopt.exporter import ModelOptExporter
    from fourfold_modelopt.quantizer import ModelOptQuantizer

    if "zero" in job:
        model = with_zero_expert(model, folder, *job["zero"])
    options = ModelOptOptions.parse(job.get("options", {}), where="quantizer")
    task = make_job(model, job, unfuser(job["unfuser"]))
    write_artifact(folder / "artifact", task, "modelopt", ModelOptQuantizer(options))
    (folder / "checkpoint").mkdir()
    ModelOptExporter(Options()).export(Artifact(folder / "artifact"), folder / "checkpoint", NoProgress())
    save_file(decoded_by_modelopt(folder / "checkpoint"), folder / "decoded.safetensors")


def decoded_by_modelopt(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Every quantized weight of a checkpoint, decoded by ModelOpt's ``NVFP4QTensor``, float32."""
    from modelopt.torch.quantization.qtensor import NVFP4QTensor

    tensors, decoded = TensorFolder(checkpoint), {}
    for entry in tensors:
        if not entry.name.endswith(".weight_scale_2"):
            continue
        module = entry.name.removesuffix(".weight_scale_2")
        packed = tensors.read(f"{module}.weight")
        shape = torch.Size((packed.shape[0], 2 * packed.shape[1]))
        decoded[module] = NVFP4QTensor(shape, torch.float32, packed).dequantize(
            dtype=torch.float32, block_sizes={-1: 16},
            scale=tensors.read(f"{module}.weight_scale"), double_scale=tensors.read(entry.name),
        )  # fmt: skip
    return decoded


def modelopt_alone(model: Path, folder: Path, job: Job) -> None:
    """ModelOpt as its documentation uses it: patterns, ``quantize``, ``export_hf_checkpoint``."""
    import modelopt.torch.quantization as mtq
    from modelopt.torch.export import export_hf_checkpoint
    from transformers import AutoModelForImageTextToText

    loaded = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.bfloat16, attn_implementation="eager")
    if job["unfuser"] == "reference":
        unfuser("reference").unfuse(loaded)
    nvfp4 = {"num_bits": (2, 1), "block_sizes": {-1: 16, "type": "dynamic", "scale_bits": (4, 3)}}
    rules = [{"quantizer_name": "*", "enable": False}]
    for pattern in job["patterns"]:
        rules.append({"quantizer_name": f"{pattern}weight_quantizer*", "cfg": nvfp4})
        if job["activations"]:
            rules.append({"quantizer_name": f"{pattern}input_quantizer", "cfg": nvfp4})
    rules += [{"quantizer_name": f"{p}input_quantizer", "enable": False} for p in job["weights_only"]]
    rules += [
        {"quantizer_name": p, "enable": False} for p in ("*router*", "*vision_tower*", "*embed_vision*", "*lm_head*")
    ]
    if job["kv"]:
        rules.append(
            {
                "quantizer_name": "*language_model*[kv]_bmm_quantizer",
                "cfg": {"num_bits": (4, 3), "axis": None},
            }
        )
    seen = tokens_of(job)

    def run(current: nn.Module) -> None:
        for batch in seen.batches(2):
            current(input_ids=batch.input_ids, use_cache=False)

    mtq.quantize(loaded, {"quant_cfg": rules, "algorithm": "max"}, run if seen else None)
    export_hf_checkpoint(loaded, export_dir=folder / "checkpoint")


def inputs(model: Path, folder: Path, job: Job) -> None:
    """Inputs [T, K] of the named modules in the BF16 model, un-fused."""
    from transformers import AutoModelForImageTextToText

    loaded = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.bfloat16, attn_implementation="eager")
    unfuser("reference").unfuse(loaded)
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in job["modules"]}
    for name, parts in seen.items():
        loaded.get_submodule(name).register_forward_pre_hook(
            lambda _module, args, parts=parts: parts.append(args[0].reshape(-1, args[0].shape[-1]))
        )
    with torch.no_grad():
        for batch in token_set(*job["tokens"]).batches(2):
            loaded(input_ids=batch.input_ids, use_cache=False)
    save_file({name: torch.cat(parts) for name, parts in seen.items()}, folder / "inputs.safetensors")


def search_nothing(_model: Path, _folder: Path, _job: Job) -> None:
    """A search over a quantizer that was never calibrated."""
    from modelopt.torch.quantization.nn import TensorQuantizer

    from fourfold_modelopt.search import search_block_scales

    uncalibrated: Any = SimpleNamespace(weight_quantizer=TensorQuantizer(), covered_weight=torch.ones(2, 16))
    search_block_scales((uncalibrated,), "mse", None, NoProgress())


def storage(model: Path, folder: Path, job: Job) -> None:
    """After GPTQ: how many experts' weights still are views of the fused storage, and how many there are."""
    from fourfold_modelopt.loading import load_model
    from fourfold_modelopt.quantizer import ModelOptQuantizer

    task = make_job(model, job, unfuser(job["unfuser"]))
    loaded = load_model(model, task.source.config, "cpu")
    fused = {p.untyped_storage().data_ptr() for name, p in loaded.named_parameters() if ".experts." in name}
    options = ModelOptOptions.parse(job["options"], where="quantizer")
    (folder / "artifact").mkdir()
    writer = ArtifactWriter(folder / "artifact", task)
    with torch.no_grad():
        linears = ModelOptQuantizer(options).calibrate(loaded, task, writer, NoProgress())
    experts = [linear for linear in linears if linear.module.expert is not None]
    inside = sum(linear.covered_weight.untyped_storage().data_ptr() in fused for linear in experts)
    (folder / "facts.json").write_text(json.dumps({"views": inside, "experts": len(experts)}))


def skipped(model: Path, folder: Path, job: Job) -> None:
    """ModelOpt's GPTQ behind its own fused wrapper: which weights it changed."""
    import modelopt.torch.quantization as mtq
    from transformers import AutoModelForImageTextToText

    from fourfold_modelopt import cpu_backend

    loaded = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.bfloat16, attn_implementation="eager")
    before = {name: p.detach().clone() for name, p in loaded.named_parameters()}
    cpu_backend.register()
    nvfp4 = {"num_bits": (2, 1), "block_sizes": {-1: 16, "type": "static", "scale_bits": (4, 3)}}
    rules: list[dict[str, Any]] = [{"quantizer_name": "*", "enable": False}]
    for kind in ("_proj.weight_quantizer", "_proj_weight_quantizers*"):
        name = f"*language_model.layers.*{kind}"
        rules.append({"quantizer_name": name, "cfg": nvfp4 | {"backend": cpu_backend.WEIGHTS}})
    rules.append({"quantizer_name": "*router*", "enable": False})

    def run(current: nn.Module) -> None:
        for batch in token_set(*job["tokens"]).batches(2):
            current(input_ids=batch.input_ids, use_cache=False)

    mtq.quantize(loaded, {"quant_cfg": rules, "algorithm": "gptq"}, run)
    parameters = dict(loaded.named_parameters())
    changed = [name for name, value in before.items() if not torch.equal(parameters[name], value)]
    (folder / "facts.json").write_text(json.dumps({"changed": changed}))


ACTIONS = {
    "quantize": quantize, "modelopt": modelopt_alone, "inputs": inputs, "search-nothing": search_nothing,
    "storage": storage, "skipped": skipped,
}  # fmt: skip


if __name__ == "__main__":
    do_jobs(Path(sys.argv[1]), make_model, ACTIONS)
