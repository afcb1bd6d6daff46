"""Runs in llm-compressor's environment: does the jobs of one JSON file, leaves results on disk for tests.

``python toolchain.py JOBS.json`` with ``{"model": DIR, "make_model": bool, "jobs": [...]}``, each job with
its ``name``, ``action`` and what that takes. Actions: ``quantize`` (ours, to NAME/artifact),
``llmcompressor`` (llm-compressor alone, to NAME/checkpoint, and the weights its model computes with to
NAME/weights.safetensors), and those of ``measures`` and ``reasons``. A job that raises a Fourfold error
leaves NAME/error.json.
"""

from __future__ import annotations

import fnmatch
import json
import sys
from pathlib import Path
from typing import Any

import torch
from measures import inputs, output_errors, unfuser, unfuser_dtype, unfuser_nothing
from reasons import reasons
from small_model import VOCABULARY, copy_with_zero_expert, make_model
from theirs import llmcompressor_alone

from fourfold.artifact import ArtifactWriter
from fourfold.calibration.spec import CalibrationSpec
from fourfold.calibration.tokens import TokenSet, TokenSetRecord, tokens_sha256
from fourfold.checkpoint.index import TensorFolder
from fourfold.config import Options, Recipe
from fourfold.errors import FourfoldError
from fourfold.interfaces.quantizer import QuantizeJob
from fourfold.models.gemma4 import read_gemma4
from fourfold.progress import NoProgress
from fourfold.reference.options import ReferenceUnfuserOptions
from fourfold.reference.unfuser import ReferenceUnfuser
from fourfold_llmcompressor.options import LlmcompressorOptions


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


def tokens(job: dict[str, Any]) -> TokenSet | None:
    return token_set(*job["tokens"], job.get("padding", 0)) if job.get("tokens") else None


def make_unfuser(name: str) -> Any:
    from fourfold_llmcompressor.unfuser import LinearizedExperts

    return ReferenceUnfuser(ReferenceUnfuserOptions()) if name == "reference" else LinearizedExperts(Options())


def quantize(model: Path, folder: Path, job: dict[str, Any]) -> None:
    """Our quantizer; with ``zero_expert``, of a copy of the model whose expert 7 of layer 1 is all zero."""
    from fourfold_llmcompressor.quantizer import LlmcompressorQuantizer

    if job.get("zero_expert"):
        model = copy_with_zero_expert(model, folder / "model")
    source = TensorFolder(model)
    gemma = read_gemma4(source)
    recipe = Recipe.parse(job.get("recipe", {}), where="recipe")
    excluded = [n for n in gemma.linears if any(fnmatch.fnmatchcase(n, p) for p in recipe.all_excludes)]
    options = LlmcompressorOptions.parse(job.get("options", {}), where="quantizer")
    task = QuantizeJob(
        model_path=model, source=source, gemma=gemma, recipe=recipe, tokens=tokens(job), batch_size=2,
        targets=tuple(m for m in gemma.linears.values() if m.name not in excluded),
        unfuser_name=job["unfuser"], unfuser=make_unfuser(job["unfuser"]),
        device=job.get("device", "cpu"), seed=0,
    )  # fmt: skip
    (folder / "artifact").mkdir()
    writer = ArtifactWriter(folder / "artifact", task)
    LlmcompressorQuantizer(options).quantize(task, writer, NoProgress())
    writer.finish(
        {
            "source_files": {},
            "unfuser": {"name": job["unfuser"]},
            "quantizer": {"name": "llmcompressor", "options": options.model_dump(mode="json")},
            "packages": {"llmcompressor": "0.14.0.1"},
        }
    )


def alone(model: Path, folder: Path, job: dict[str, Any]) -> None:
    """llm-compressor without our quantizer."""
    ours = make_unfuser("reference") if job["unfuser"] == "reference" else None
    llmcompressor_alone(model, folder, job, tokens(job), ours)


def with_tokens(action: Any) -> Any:
    """An action that takes the job's tokens."""
    return lambda model, folder, job: action(model, folder, job, tokens(job))


ACTIONS = {
    "quantize": quantize,
    "llmcompressor": alone,
    "inputs": with_tokens(inputs),
    "output_errors": with_tokens(output_errors),
    "reasons": with_tokens(reasons),
    "unfuser": unfuser,
    "unfuser_dtype": unfuser_dtype,
    "unfuser_nothing": unfuser_nothing,
}


def main(path: Path) -> None:
    spec = json.loads(path.read_text())
    torch.set_num_threads(1)
    model = Path(spec["model"])
    if spec["make_model"]:
        make_model(model)
    for job in spec["jobs"]:
        folder = path.parent / job["name"]
        folder.mkdir()
        try:
            ACTIONS[job["action"]](model, folder, job)
        except FourfoldError as error:
            (folder / "error.json").write_text(json.dumps({"type": type(error).__name__, "message": str(error)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
