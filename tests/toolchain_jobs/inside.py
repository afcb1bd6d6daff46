"""In a toolchain's environment: a small model, tokens, a job as core would make it, and the loop over all jobs.

A backend's script is called as ``python SCRIPT JOBS.json`` with ``{"model": DIR, "make_model": bool, "jobs": [...]}``,
each job with its ``name``, ``action`` and what that takes. A job that raises a Fourfold error leaves NAME/error.json.
"""

from __future__ import annotations

import fnmatch
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from fourfold.artifact import ArtifactWriter
from fourfold.calibration import CalibrationSpec, TokenSet, TokenSetRecord
from fourfold.calibration.tokens import tokens_sha256
from fourfold.checkpoint.index import TensorFolder
from fourfold.config import Recipe
from fourfold.errors import FourfoldError
from fourfold.interfaces.quantizer import QuantizeJob, Quantizer
from fourfold.models.gemma4 import read_gemma4
from fourfold.models.resolve import resolve_model
from fourfold.progress import NoProgress
from fourfold.reference.options import ReferenceUnfuserOptions
from fourfold.reference.unfuser import ReferenceUnfuser
from fourfold.versions import package_versions

VOCABULARY = 256
_TEXT = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "global_head_dim": 32,
    "num_global_key_value_heads": 1, "attention_k_eq_v": True, "enable_moe_block": True, "num_experts": 16,
    "top_k_experts": 4, "moe_intermediate_size": 48, "layer_types": ["sliding_attention", "full_attention"],
    "sliding_window": 32, "final_logit_softcapping": 30.0, "hidden_size_per_layer_input": 0,
    "vocab_size_per_layer_input": VOCABULARY, "num_kv_shared_layers": 0,
    "use_bidirectional_attention": "vision", "dtype": "bfloat16",
}  # fmt: skip
_VISION = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 16, "position_embedding_size": 64, "standardize": True,
    "dtype": "bfloat16",
}  # fmt: skip

Job = dict[str, Any]
Action = Callable[[Path, Path, Job], None]


def make_model(folder: Path, plant: Callable[[Any], None] = lambda model: None) -> None:
    """A random Gemma 4 MoE: two layers (sliding, full with K as V), 16 experts, top 4, a vision tower.

    ``plant`` changes the model before it is saved.
    """
    from transformers import Gemma4Config, Gemma4ForConditionalGeneration

    torch.manual_seed(0)
    config = Gemma4Config(text_config=_TEXT, vision_config=_VISION, audio_config=None, dtype="bfloat16")
    model = Gemma4ForConditionalGeneration(config).to(torch.bfloat16)
    for name, buffer in model.named_buffers():
        if name.endswith("layer_scalar"):
            buffer.fill_(0.7)
    with torch.no_grad():
        plant(model)
    model.save_pretrained(folder)


def with_zero_expert(model: Path, folder: Path, tensor: str, expert: int) -> Path:
    """A copy of the model in which one expert's slice of a fused tensor is all zeros."""
    copy = shutil.copytree(model, folder / "model")
    tensors = load_file(copy / "model.safetensors")
    tensors[tensor][expert] = 0
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


def token_set(num_batches: int, length: int, padding: int = 0) -> TokenSet:
    """Rows of random token ids, two a batch; ``padding`` positions on the right of every second row."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.randint(3, VOCABULARY, (2 * num_batches, length), generator=generator, dtype=torch.int32)
    lengths = torch.full((len(rows),), length, dtype=torch.int32)
    lengths[1::2] -= padding
    spec = CalibrationSpec(source="random", samples=len(rows), sequence_length=length, batch_size=2)
    record = TokenSetRecord(
        spec=spec, num_texts=len(rows), num_tokens=int(lengths.sum()), texts_sha256="", tokenizer_sha256="",
        tokens_sha256=tokens_sha256(rows, lengths),
    )  # fmt: skip
    return TokenSet(rows, lengths, record)


def tokens_of(job: Job) -> TokenSet | None:
    """The job's tokens: (batches, length) under ``tokens``, and ``padding``."""
    return token_set(*job["tokens"], job.get("padding", 0)) if job.get("tokens") else None


def reference_unfuser() -> ReferenceUnfuser:
    return ReferenceUnfuser(ReferenceUnfuserOptions())


def make_job(model: Path, job: Job, unfuser: Any) -> QuantizeJob:
    """The job that core would make; patterns are taken as they come."""
    source = TensorFolder(model)
    gemma = read_gemma4(source)
    recipe = Recipe.parse(job.get("recipe", {}), where="recipe")
    targets = tuple(
        m for m in gemma.linears.values() if not any(fnmatch.fnmatchcase(m.name, p) for p in recipe.all_excludes)
    )
    return QuantizeJob(
        model_path=model, source=source, gemma=gemma, targets=targets, recipe=recipe, tokens=tokens_of(job),
        batch_size=2, unfuser_name=job["unfuser"], unfuser=unfuser, device=job.get("device", "cpu"), seed=0,
    )  # fmt: skip


def write_artifact(folder: Path, job: QuantizeJob, name: str, quantizer: Quantizer[Any]) -> None:
    """Run ``quantizer``, known as ``name``, over ``job`` into the new ``folder``."""
    folder.mkdir()
    writer = ArtifactWriter(folder, job)
    quantizer.quantize(job, writer, NoProgress())
    writer.finish(
        {
            "source_files": {},
            "unfuser": {"name": job.unfuser_name},
            "quantizer": {"name": name, "options": quantizer.options.model_dump(mode="json")},
            "packages": package_versions(),
        }
    )


def do_jobs(path: Path, make: Callable[[Path], None], actions: Mapping[str, Action]) -> None:
    """Do all jobs of one file, each in a folder of its own beside it."""
    spec = json.loads(path.read_text())
    torch.set_num_threads(1)
    model = Path(spec["model"])
    if spec["make_model"]:
        make(model)
    for job in spec["jobs"]:
        folder = path.parent / job["name"]
        folder.mkdir()
        try:
            actions[job["action"]](resolve_model(job["model"]) if "model" in job else model, folder, job)
        except FourfoldError as error:
            (folder / "error.json").write_text(json.dumps({"type": type(error).__name__, "message": str(error)}))
