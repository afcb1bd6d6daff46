"""Prompt log-probabilities from a vLLM endpoint, one file a sequence, so that an interrupted run goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from fourfold.checkpoint.atomic import atomic_file
from fourfold.errors import EvaluationError
from fourfold.evaluate.client import Reply, Request, ask
from fourfold.interfaces.benchmark import MeasurementJob
from fourfold.interfaces.server import Endpoint
from fourfold.progress import Progress
from fourfold_eval.divergence.kernel import NO_TOKEN, Distributions
from fourfold_eval.divergence.sequences import SequenceSet

#: vLLM's word for the whole vocabulary.
ALL = -1


def missing(sequences: SequenceSet, folder: Path) -> list[int]:
    """Sequences whose distributions are not in ``folder``, are damaged there, or were measured on other tokens."""
    return [index for index in range(len(sequences.sequences)) if load(sequences, index, folder) is None]


def fetch(
    sequences: SequenceSet, indices: list[int], endpoint: Endpoint, job: MeasurementJob, progress: Progress
) -> None:
    """Ask for these sequences and write their files to ``job.folder``."""
    top_k = sequences.options.top_k or ALL
    progress.begin(f"{job.target.name}: kl distributions", total=len(indices), unit="prompt")
    requests = []
    for index in indices:
        sequence = sequences.sequences[index]
        payload = {
            "model": endpoint.model,
            "prompt": [*sequence.prompt_ids, *sequence.answer_ids],
            "max_tokens": 1,
            "temperature": 0.0,
            "prompt_logprobs": top_k,
            "add_special_tokens": False,
        }
        requests.append(Request(index, "completions", payload))

    def receive(reply: Reply) -> None:
        sequence = sequences.sequences[reply.key]
        rows = _rows(reply.body, endpoint.url)[len(sequence.prompt_ids) :]
        if len(rows) != len(sequence.answer_ids):
            raise EvaluationError(f"{endpoint.url}: log-probabilities of {len(rows)} answer tokens, "
                                  f"asked for {len(sequence.answer_ids)}")  # fmt: skip
        _save(_distributions(rows), sequences, reply.key, job.folder)
        progress.advance(1)

    ask(endpoint.url, requests, receive, concurrency=job.concurrency, timeout_s=job.timeout_s)


def _rows(body: dict[str, Any], url: str) -> list[dict[str, Any]]:
    try:
        rows = body["choices"][0]["prompt_logprobs"]
        # The first token has nothing before it, and so no distribution.
        return [row or {} for row in rows]
    except (KeyError, IndexError, TypeError):
        raise EvaluationError(f"{url}: returns no prompt_logprobs; kl needs a vLLM server") from None


def _distributions(rows: list[dict[str, Any]]) -> Distributions:
    """Rows of ``{token id: {"logprob": ..., "rank": ...}}`` as arrays, most probable first."""
    width = max(len(row) for row in rows)
    ids = np.full((len(rows), width), NO_TOKEN, dtype=np.int32)
    logprobs = np.full((len(rows), width), -np.inf, dtype=np.float32)
    for t, row in enumerate(rows):
        # Of equal log-probabilities the server ranks one first, and so do we.
        ordered = sorted(row.items(), key=lambda item: (-item[1]["logprob"], item[1].get("rank") or 0))
        ids[t, : len(ordered)] = [int(token) for token, _ in ordered]
        logprobs[t, : len(ordered)] = [entry["logprob"] for _, entry in ordered]
    return Distributions(ids, logprobs)


def _save(distributions: Distributions, sequences: SequenceSet, index: int, folder: Path) -> None:
    """Write one sequence's file, whole or not at all."""
    asked = np.array(sequences.asked_sha256(index))
    with atomic_file(_path(folder, index)) as stream:
        np.savez_compressed(stream, asked_sha256=asked, ids=distributions.ids, logprobs=distributions.logprobs)


def load(sequences: SequenceSet, index: int, folder: Path) -> Distributions | None:
    """One sequence's distributions; None where the file is missing, damaged, or measured on other tokens."""
    try:
        with np.load(_path(folder, index), allow_pickle=False) as arrays:
            if str(arrays["asked_sha256"]) != sequences.asked_sha256(index):
                return None
            return Distributions(arrays["ids"], arrays["logprobs"])
    except (OSError, ValueError, KeyError, BadZipFile):
        return None


def _path(folder: Path, index: int) -> Path:
    return folder / "distributions" / f"{index:05d}.npz"
