"""Runs in llm-compressor's environment: does the jobs of one JSON file, leaves results on disk for tests.

See :mod:`toolchain_jobs.inside`. Actions: ``quantize`` (ours, to NAME/artifact; ``quantize_unpinned`` for AWQ),
``llmcompressor`` (llm-compressor alone, to NAME/checkpoint, and the weights its model computes with to
NAME/weights.safetensors), and those of ``measures`` and ``reasons``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from measures import inputs, output_errors, unfuser, unfuser_dtype, unfuser_nothing
from reasons import reasons
from small_model import ZERO_EXPERT, make_planted_model
from theirs import llmcompressor_alone

from fourfold.config import Options
from fourfold_llmcompressor.options import LlmcompressorOptions
from toolchain_jobs.inside import (
    Action,
    Job,
    do_jobs,
    make_job,
    reference_unfuser,
    tokens_of,
    with_zero_expert,
    write_artifact,
)


def make_unfuser(name: str) -> Any:
    from fourfold_llmcompressor.unfuser import LinearizedExperts

    return reference_unfuser() if name == "reference" else LinearizedExperts(Options())


def quantize(model: Path, folder: Path, job: Job) -> None:
    """Our quantizer; with ``zero_expert``, of a copy of the model with an expert of zeros."""
    from fourfold_llmcompressor.quantizer import LlmcompressorQuantizer

    if job.get("zero_expert"):
        model = with_zero_expert(model, folder, *ZERO_EXPERT)
    options = LlmcompressorOptions.parse(job.get("options", {}), where="quantizer")
    task = make_job(model, job, make_unfuser(job["unfuser"]))
    write_artifact(folder / "artifact", task, "llmcompressor", LlmcompressorQuantizer(options))


def quantize_unpinned(model: Path, folder: Path, job: Job) -> None:
    """The same, with llm-compressor's cache left unpinned: all that its AWQ needs CUDA for."""
    from llmcompressor.pipelines.cache import IntermediatesCache

    pin_memory = IntermediatesCache.pin_memory
    IntermediatesCache.pin_memory = lambda *_: None
    try:
        quantize(model, folder, job)
    finally:
        IntermediatesCache.pin_memory = pin_memory


def alone(model: Path, folder: Path, job: Job) -> None:
    """llm-compressor without our quantizer."""
    ours = reference_unfuser() if job["unfuser"] == "reference" else None
    llmcompressor_alone(model, folder, job, tokens_of(job), ours)


def with_tokens(action: Any) -> Action:
    """An action that takes the job's tokens."""
    return lambda model, folder, job: action(model, folder, job, tokens_of(job))


ACTIONS = {
    "quantize": quantize,
    "quantize_unpinned": quantize_unpinned,
    "llmcompressor": alone,
    "inputs": with_tokens(inputs),
    "output_errors": with_tokens(output_errors),
    "reasons": with_tokens(reasons),
    "unfuser": unfuser,
    "unfuser_dtype": unfuser_dtype,
    "unfuser_nothing": unfuser_nothing,
}


if __name__ == "__main__":
    do_jobs(Path(sys.argv[1]), make_planted_model, ACTIONS)
