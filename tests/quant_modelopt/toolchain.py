"""Runs in ModelOpt's environment: does the jobs of one JSON file and leaves results on disk for the tests to read.

``python toolchain.py JOBS.json`` with ``{"model": DIR, "make_model": bool, "jobs": [{"name", "action", ...}]}``.
Actions: ``quantize`` (ours, to NAME/artifact and NAME/checkpoint), ``modelopt`` (ModelOpt alone, from wildcard
patterns to ``export_hf_checkpoint``, none of our code but the unfuser), ``inputs`` (BF16 inputs of named modules).
A job that raises a Fourfold error leaves NAME/error.json.
"""

from __future__ import annotations

import fnmatch
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fourfold.artifact import Artifact, ArtifactWriter
from fourfold.calibration import CalibrationSpec, TokenSet, TokenSetRecord
from fourfold.calibration.tokens import tokens_sha256
from fourfold.checkpoint.index import TensorFolder
from fourfold.config import Options, Recipe
from fourfold.errors import FourfoldError
from fourfold.interfaces.quantizer import QuantizeJob
from fourfold.models.gemma4 import read_gemma4
from fourfold.models.resolve import resolve_model
from fourfold.progress import NoProgress
from fourfold.reference.experts import UnfusedExperts
from fourfold.reference.options import ReferenceUnfuserOptions
from fourfold.reference.unfuser import ReferenceUnfuser
from fourfold_modelopt.options import ModelOptOptions
from fourfold_modelopt.unfuser import ModelOptUnfuser

VOCABULARY = 256


def token_set(num_batches: int, length: int) -> TokenSet:
    """Rows of random token ids, two a batch, without padding."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.randint(3, VOCABULARY, (2 * num_batches, length), generator=generator, dtype=torch.int32)
    lengths = torch.full((len(rows),), length, dtype=torch.int32)
    spec = CalibrationSpec(source="random", samples=len(rows), sequence_length=length, batch_size=2)
    record = TokenSetRecord(
        spec=spec, num_texts=len(rows), num_tokens=rows.numel(), texts_sha256="", tokenizer_sha256="",
        tokens_sha256=tokens_sha256(rows, lengths),
    )  # fmt: skip
    return TokenSet(rows, lengths, record)


def make_model(folder: Path) -> None:
    """A random Gemma 4 MoE: two layers (sliding, full with K as V), 16 experts, top 4, a vision tower."""
    from transformers import Gemma4Config, Gemma4ForConditionalGeneration

    text = {
        "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "global_head_dim": 32,
        "num_global_key_value_heads": 1, "attention_k_eq_v": True, "enable_moe_block": True, "num_experts": 16,
        "top_k_experts": 4, "moe_intermediate_size": 48, "layer_types": ["sliding_attention", "full_attention"],
        "sliding_window": 32, "final_logit_softcapping": 30.0, "hidden_size_per_layer_input": 0,
        "vocab_size_per_layer_input": VOCABULARY, "num_kv_shared_layers": 0,
        "use_bidirectional_attention": "vision", "dtype": "bfloat16",
    }  # fmt: skip
    vision = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 2, "head_dim": 16, "position_embedding_size": 64, "standardize": True,
        "dtype": "bfloat16",
    }  # fmt: skip
    torch.manual_seed(0)
    config = Gemma4Config(text_config=text, vision_config=vision, audio_config=None, dtype="bfloat16")
    model = Gemma4ForConditionalGeneration(config).to(torch.bfloat16)
    for name, buffer in model.named_buffers():
        if name.endswith("layer_scalar"):
            buffer.fill_(0.7)
    model.save_pretrained(folder)


def with_zero_expert(model: Path, folder: Path, tensor: str, expert: int) -> Path:
    """A copy of the model in which one expert's slice of a fused tensor is all zeros."""
    copy = shutil.copytree(model, folder / "model")
    tensors = load_file(copy / "model.safetensors")
    tensors[tensor][expert] = 0
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


def unfuser(name: str) -> Any:
    return ReferenceUnfuser(ReferenceUnfuserOptions()) if name == "reference" else ModelOptUnfuser(Options())


def tokens(job: dict[str, Any]) -> TokenSet | None:
    return token_set(*job["tokens"]) if job.get("tokens") else None


def make_job(model: Path, job: dict[str, Any]) -> QuantizeJob:
    """The job that core would make; patterns are taken as they come."""
    source = TensorFolder(model)
    gemma = read_gemma4(source)
    recipe = Recipe.parse(job.get("recipe", {}), where="recipe")
    targets = tuple(
        m for m in gemma.linears.values() if not any(fnmatch.fnmatchcase(m.name, p) for p in recipe.all_excludes)
    )
    return QuantizeJob(
        model_path=model, source=source, gemma=gemma, targets=targets, recipe=recipe, tokens=tokens(job),
        batch_size=2, unfuser_name=job["unfuser"], unfuser=unfuser(job["unfuser"]),
        device=job.get("device", "cpu"), seed=0,
    )  # fmt: skip


def quantize(model: Path, folder: Path, job: dict[str, Any]) -> None:
    """Our quantizer, then our exporter; and every target as ModelOpt's own tensor class decodes it."""
    from fourfold_modelopt.exporter import ModelOptExporter
    from fourfold_modelopt.quantizer import ModelOptQuantizer

    if "zero" in job:
        model = with_zero_expert(model, folder, *job["zero"])
    task = make_job(model, job)
    options = ModelOptOptions.parse(job.get("options", {}), where="quantizer")
    writer = ArtifactWriter(folder / "artifact", task)
    ModelOptQuantizer(options).quantize(task, writer, NoProgress())
    writer.finish(
        {
            "source_files": {},
            "unfuser": {"name": job["unfuser"]},
            "quantizer": {"name": "modelopt", "options": options.model_dump(mode="json")},
            "packages": {"nvidia-modelopt": "0.47.0"},
        }
    )
    artifact = Artifact(folder / "artifact")
    ModelOptExporter(Options()).export(artifact, folder / "checkpoint", NoProgress())
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


class ExpertList(nn.ModuleList):
    """Un-fused experts as ModelOpt's export wants them: iterable. Holds the very same linears."""

    def __init__(self, experts: UnfusedExperts) -> None:
        super().__init__(experts.children())
        self._experts = (experts,)

    def forward(self, *args: torch.Tensor) -> torch.Tensor:
        return self._experts[0](*args)


def modelopt_alone(model: Path, folder: Path, job: dict[str, Any]) -> None:
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
    seen = tokens(job)

    def run(current: nn.Module) -> None:
        for batch in seen.batches(2):
            current(input_ids=batch.input_ids, use_cache=False)

    mtq.quantize(loaded, {"quant_cfg": rules, "algorithm": "max"}, run if seen else None)
    for name, module in list(loaded.named_modules()):
        if isinstance(module, UnfusedExperts):
            loaded.set_submodule(name, ExpertList(module))
    export_hf_checkpoint(loaded, export_dir=folder / "checkpoint")


def inputs(model: Path, folder: Path, job: dict[str, Any]) -> None:
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


def search_nothing(_model: Path, _folder: Path, _job: dict[str, Any]) -> None:
    """A search over a quantizer that was never calibrated."""
    from modelopt.torch.quantization.nn import TensorQuantizer

    from fourfold_modelopt.search import search_block_scales

    uncalibrated: Any = SimpleNamespace(weight_quantizer=TensorQuantizer(), covered_weight=torch.ones(2, 16))
    search_block_scales((uncalibrated,), "mse", None, NoProgress())


def storage(model: Path, folder: Path, job: dict[str, Any]) -> None:
    """After GPTQ: how many experts' weights still are views of the fused storage, and how many there are."""
    from fourfold_modelopt.loading import load_model
    from fourfold_modelopt.quantizer import ModelOptQuantizer

    task = make_job(model, job)
    loaded = load_model(model, task.source.config, "cpu")
    fused = {p.untyped_storage().data_ptr() for name, p in loaded.named_parameters() if ".experts." in name}
    options = ModelOptOptions.parse(job["options"], where="quantizer")
    writer = ArtifactWriter(folder / "artifact", task)
    with torch.no_grad():
        linears = ModelOptQuantizer(options).calibrate(loaded, task, writer, NoProgress())
    experts = [linear for linear in linears if linear.module.expert is not None]
    inside = sum(linear.covered_weight.untyped_storage().data_ptr() in fused for linear in experts)
    (folder / "facts.json").write_text(json.dumps({"views": inside, "experts": len(experts)}))


def skipped(model: Path, folder: Path, job: dict[str, Any]) -> None:
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


def main(path: Path) -> None:
    spec = json.loads(path.read_text())
    torch.set_num_threads(1)
    model = Path(spec["model"])
    if spec["make_model"]:
        make_model(model)
    for job in spec["jobs"]:
        folder = path.parent / job["name"]
        for part in ("artifact", "checkpoint"):
            (folder / part).mkdir(parents=True)
        try:
            ACTIONS[job["action"]](resolve_model(job["model"]) if "model" in job else model, folder, job)
        except FourfoldError as error:
            (folder / "error.json").write_text(json.dumps({"type": type(error).__name__, "message": str(error)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
