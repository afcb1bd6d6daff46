"""Evaluate a model on the demo tasks: ``python -m fourfold.demo.evaluate MODEL --task math --count 1000``.

Prints one JSON object a task. Answers are greedy, made with the KV cache in left-padded batches by Transformers, from
prompts that the model folder's own processor builds. Prose is scored by perplexity instead.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from fourfold.demo import HELD_OUT_COUNT, HELD_OUT_SEED, MODEL_NAME, model_path
from fourfold.demo.tasks import SPLITS, TASKS, Problem, Split, get_task
from fourfold.demo.tasks.vision import FRAME_SECONDS

#: Two-sided 95 % quantile of the normal distribution.
_Z95 = 1.959963984540054


def wilson_interval(correct: int, count: int) -> tuple[float, float] | None:
    """Wilson's 95 % interval of a proportion; None without a trial."""
    if count == 0:
        return None
    share, z2 = correct / count, _Z95**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = _Z95 / (1 + z2 / count) * math.sqrt(share * (1 - share) / count + z2 / (4 * count * count))
    return max(0.0, centre - half), min(1.0, centre + half)


def model_inputs_of(processor: Any, problems: list[Problem], device: torch.device) -> dict[str, torch.Tensor]:
    """One batch of prompts of one medium as the processor encodes them, padded on the left."""
    texts = [processor.apply_chat_template(p.messages, add_generation_prompt=True, tokenize=False) for p in problems]
    media: dict[str, Any] = {}
    if problems[0].medium == "image":
        from PIL import Image

        media["images"] = [[Image.fromarray(p.frames()[0])] for p in problems]
    elif problems[0].medium == "video":
        from transformers.video_utils import VideoMetadata

        clips = [torch.from_numpy(p.frames()).permute(0, 3, 1, 2) for p in problems]
        media = {
            "videos": clips,
            "video_metadata": [
                VideoMetadata(total_num_frames=len(c), fps=1 / FRAME_SECONDS, frames_indices=list(range(len(c))))
                for c in clips
            ],
            "do_sample_frames": False,
        }
    inputs = processor(
        text=texts, add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt", **media
    )
    return {name: tensor.to(device) for name, tensor in inputs.items()}


@torch.no_grad()
def respond(model: Any, processor: Any, problems: list[Problem], batch_size: int) -> list[str]:
    """Greedy responses, in order. All problems belong to one task."""
    end = processor.tokenizer.convert_tokens_to_ids(["<eos>", "<turn|>"])
    responses: list[str] = []
    for start in range(0, len(problems), batch_size):
        batch = problems[start : start + batch_size]
        inputs = model_inputs_of(processor, batch, model.device)
        output = model.generate(
            **inputs,
            max_new_tokens=get_task(batch[0].task).max_new_tokens,
            do_sample=False,
            eos_token_id=end,
            pad_token_id=processor.tokenizer.pad_token_id,
        )
        new_tokens = output[:, inputs["input_ids"].shape[1] :]
        responses.extend(processor.tokenizer.batch_decode(new_tokens, skip_special_tokens=True))
    return responses


def score(task_name: str, problems: list[Problem], responses: list[str]) -> dict[str, Any]:
    """Count correct responses, with each part of the verdict by name."""
    task = get_task(task_name)
    asked: Counter[str] = Counter()
    right: Counter[str] = Counter()
    correct = 0
    for problem, response in zip(problems, responses, strict=True):
        verdict = task.check(problem, response)
        asked.update(verdict.keys())
        right.update(part for part, holds in verdict.items() if holds)
        correct += all(verdict.values())
    interval = wilson_interval(correct, len(problems))
    return {
        "task": task_name,
        "n": len(problems),
        "correct": correct,
        "score": correct / len(problems) if problems else None,
        "wilson_95": list(interval) if interval else None,
        "parts": {part: {"n": asked[part], "correct": right[part]} for part in sorted(asked)},
    }


@torch.no_grad()
def perplexity(model: Any, processor: Any, problems: list[Problem], batch_size: int) -> dict[str, Any]:
    """Perplexity per token of each text after ``<bos>``, its ``<eos>`` included; the interval is over texts."""
    tokenizer = processor.tokenizer
    losses: list[float] = []
    counts: list[int] = []
    for start in range(0, len(problems), batch_size):
        texts = [problem.target + tokenizer.eos_token for problem in problems[start : start + batch_size]]
        inputs = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt").to(model.device)
        logits = model(**inputs).logits[:, :-1].float()
        labels = inputs["input_ids"][:, 1:]
        kept = inputs["attention_mask"][:, 1:].bool()
        nll = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none").masked_fill(~kept, 0)
        losses.extend(nll.sum(1).tolist())
        counts.extend(kept.sum(1).tolist())
    mean = sum(losses) / sum(counts)
    spread = [loss - mean * count for loss, count in zip(losses, counts, strict=True)]
    error = None
    if len(losses) > 1:
        variance = sum(value * value for value in spread) / (len(spread) - 1)
        error = math.sqrt(len(spread) * variance) / sum(counts)
    return {
        "task": "prose",
        "n": len(problems),
        "tokens": sum(counts),
        "nll_per_token": mean,
        "nll_standard_error": error,
        "perplexity": math.exp(mean),
    }


def evaluate(model: Any, processor: Any, task_name: str, problems: list[Problem], batch_size: int) -> dict[str, Any]:
    """Score one task's problems."""
    if task_name == "prose":
        return perplexity(model, processor, problems, batch_size)
    return score(task_name, problems, respond(model, processor, problems, batch_size))


def load(model: str | Path, device: str, experts_implementation: str | None = None) -> tuple[Any, Any]:
    """(model in BF16, processor) of a local folder, or of the demo model by its name; no network."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from fourfold.demo.check import check_model_folder

    folder = model_path() if str(model) == MODEL_NAME else Path(model)
    check_model_folder(folder)
    options = {"experts_implementation": experts_implementation} if experts_implementation else {}
    local: dict[str, Any] = {"local_files_only": True}
    loaded = AutoModelForImageTextToText.from_pretrained(
        folder, dtype=torch.bfloat16, trust_remote_code=False, use_safetensors=True, **local, **options
    )
    return loaded.to(device).eval(), AutoProcessor.from_pretrained(folder, trust_remote_code=False, **local)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m fourfold.demo.evaluate", description=__doc__)
    parser.add_argument("model", help=f"a model folder, or '{MODEL_NAME}'")
    parser.add_argument("--task", action="append", choices=list(TASKS), help="repeatable; default: all")
    parser.add_argument("--count", type=int, default=HELD_OUT_COUNT)
    parser.add_argument("--split", choices=SPLITS, default="test")
    parser.add_argument("--seed", type=int, default=HELD_OUT_SEED)
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--show", type=int, default=0, help="print this many wrong answers to standard error")
    options = parser.parse_args(arguments)
    model, processor = load(options.model, options.device)
    split: Split = options.split
    for name in options.task or TASKS:
        started = time.perf_counter()
        problems = get_task(name).generate(split, options.count, options.seed)
        if name == "prose":
            result = perplexity(model, processor, problems, options.batch_size)
        else:
            responses = respond(model, processor, problems, options.batch_size)
            result = score(name, problems, responses)
            _show_wrong(problems, responses, options.show)
        seconds = round(time.perf_counter() - started, 1)
        print(json.dumps({**result, "split": split, "seed": options.seed, "seconds": seconds}), flush=True)
    return 0


def _show_wrong(problems: list[Problem], responses: list[str], limit: int) -> None:
    wrong = [(p, r) for p, r in zip(problems, responses, strict=True) if not get_task(p.task).is_correct(p, r)]
    for problem, response in wrong[:limit]:
        print(f"--- {problem.prompt}\nexpected: {problem.target}\ngot: {response}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
