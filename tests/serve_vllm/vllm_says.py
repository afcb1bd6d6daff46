"""Runs in vLLM's environment: ``python vllm_says.py QUESTIONS.json ANSWERS.json``.

``commands``: what vLLM's own parser makes of each, or its complaint. ``caches``: the bytes that vLLM's own cache
specifications want for one sequence, of layers given as [heads, head size, window or null]. ``spans``: the rows that
our CPU attention computes again, for batches of requests with pictures.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.kv_cache_interface import FullAttentionSpec, SlidingWindowSpec

from fourfold_vllm.cpu_attention import spans_in_batch


def parsed(words: list[str]) -> dict:
    """Arguments by name; ``error`` when vLLM refuses them."""
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            arguments = make_arg_parser(FlexibleArgumentParser()).parse_args(words)
            validate_parsed_serve_args(arguments)
    except (SystemExit, TypeError, ValueError) as error:
        return {"error": complaint.getvalue() or repr(error)}
    return {
        name: value for name, value in vars(arguments).items() if isinstance(value, str | int | float | bool | list)
    }


def cache_bytes(layers: list[list], tokens: int, in_flight: int, value_bytes: int) -> int:
    """Of all layers together, for one sequence."""
    config = SimpleNamespace(
        model_config=SimpleNamespace(max_model_len=tokens),
        parallel_config=SimpleNamespace(decode_context_parallel_size=1),
        max_in_flight_tokens=in_flight,
    )
    dtype = {1: torch.uint8, 2: torch.bfloat16, 4: torch.float32}[value_bytes]
    total = 0
    for heads, head_size, window in layers:
        common = {"block_size": 16, "num_kv_heads": heads, "head_size": head_size, "dtype": dtype}
        spec = FullAttentionSpec(**common) if window is None else SlidingWindowSpec(**common, sliding_window=window)
        total += spec.max_memory_usage_bytes(config)
    return total


questions = json.loads(Path(sys.argv[1]).read_text())
answers = {
    "commands": [parsed(words) for words in questions["commands"]],
    "caches": [cache_bytes(**case) for case in questions["caches"]],
    "spans": [
        spans_in_batch(dict(enumerate(ranges)), starts, lengths) for ranges, starts, lengths in questions["spans"]
    ],
}
Path(sys.argv[2]).write_text(json.dumps(answers))
