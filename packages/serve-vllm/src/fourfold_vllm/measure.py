"""Loads on an endpoint, through a process of vLLM's environment that runs ``vllm bench serve``'s functions."""

from __future__ import annotations

import json
import os
import select
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fourfold.errors import ServerError
from fourfold.interfaces.server import Endpoint, Load, LoadResult
from fourfold.progress import Progress
from fourfold.stages.logs import log_folder
from fourfold_vllm.process import run_process, tail


def measure_loads(
    python: Path, endpoint: Endpoint, loads: Sequence[Load], progress: Progress
) -> tuple[LoadResult, ...]:
    """Results in the order of ``loads``; :class:`ServerError` when a request failed or the client did, the log kept."""
    if endpoint.root is None:
        raise ServerError(f"{endpoint.url}: does not say which model it serves; give its folder with --tokenizer")
    with log_folder("bench", progress) as folder:
        request, results, log = (folder / name for name in ("request.json", "results.jsonl", "bench.log"))
        commands = [_arguments(endpoint, load) for load in loads]
        request.write_text(json.dumps(commands), encoding="utf-8")
        results.touch()
        progress.begin("measure", total=len(loads), unit="load")
        command = (str(python), "-m", "fourfold_vllm.bench_client", str(request), str(results))
        # Only a tokenizer that is no folder here may have to be fetched.
        offline = {"HF_HUB_OFFLINE": "1" if Path(endpoint.root).is_dir() else "0"}
        with run_process(command, offline, log) as run:
            done = 0
            while run.head.poll() is None:
                _wait_for_exit(run.head.pid)
                finished = results.read_text(encoding="utf-8").count("\n")
                progress.advance(finished - done)
                done = finished
        lines = results.read_text(encoding="utf-8").splitlines()
        if len(lines) != len(loads):
            raise ServerError(f"vllm bench serve ended after {len(lines)} of {len(loads)} loads{tail(log)}")
        pairs = zip(loads, map(json.loads, lines), strict=True)
        return tuple(_result(load, measured, log) for load, measured in pairs)


def _wait_for_exit(pid: int, timeout_s: float = 1.0) -> None:
    """Return when the process has ended, or after ``timeout_s``; it stays to be reaped by its owner."""
    descriptor = os.pidfd_open(pid)
    try:
        select.select([descriptor], [], [], timeout_s)
    finally:
        os.close(descriptor)


def _arguments(endpoint: Endpoint, load: Load) -> list[str]:
    """One ``vllm bench serve`` command line; prompts of exactly the asked length, answers that do not stop early."""
    return [
        "--backend", "openai", "--base-url", endpoint.url.removesuffix("/v1"), "--endpoint", "/v1/completions",
        "--model", endpoint.model, "--tokenizer", str(endpoint.root), "--dataset-name", "random",
        "--random-input-len", str(load.input_tokens), "--random-output-len", str(load.output_tokens),
        "--random-range-ratio", "0", "--num-prompts", str(load.requests), "--max-concurrency", str(load.streams),
        "--seed", str(load.seed), "--ignore-eos", "--temperature", "0", "--disable-tqdm",
    ]  # fmt: skip


def _result(load: Load, measured: dict[str, Any], log: Path) -> LoadResult:
    if measured["failed"] or measured["completed"] != load.requests:
        raise ServerError(
            f"{load.requests - measured['completed']} of {load.requests} requests failed "
            f"({load.input_tokens} tokens in, {load.output_tokens} out){tail(log)}"
        )
    return LoadResult(
        load=load,
        seconds=measured["duration"],
        output_tokens_s=measured["output_throughput"],
        ttft_s=measured["median_ttft_ms"] / 1000,
        num_output_tokens=measured["total_output_tokens"],
    )
