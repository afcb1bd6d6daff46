"""Our commands through vLLM's own parser, our arithmetic against vLLM's own: one process answers for all tests."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from fourfold.environments import python_of
from fourfold.hardware import GPUS
from fourfold_vllm.facts import TOKENS_IN_FLIGHT, read_facts
from fourfold_vllm.hooks import VLLM_CPU
from fourfold_vllm.options import VllmOptions
from fourfold_vllm.server import VllmCpuServer, VllmServer
from serve_vllm.full_size import COMPRESSED, NVFP4, TEXT_CONFIG, write_checkpoint

_CASES = [
    {"tokens": tokens, "value_bytes": value_bytes}
    for tokens in (1, 1000, 4096, 9216, 50_000, 262_144)
    for value_bytes in (1, 2)
]

#: (ranges of each request, first row of each request and the end, tokens of each request so far) -> rows again:
#: (request, first row, rows, tokens up to the end of the range).
_SPANS = {
    "a picture in a whole prompt": ([[[5, 68]]], [0, 80], [80], [[0, 5, 64, 69]]),
    "two frames of a clip": ([[[5, 8], [12, 15]]], [0, 20], [20], [[0, 5, 4, 9], [0, 12, 4, 16]]),
    "the second request of a batch": ([[], [[2, 4]]], [0, 7, 17], [7, 10], [[1, 9, 3, 5]]),
    "a picture in the cache already": ([[[5, 68]]], [0, 10], [90], []),
    "half of it in the cache": ([[[5, 68]]], [0, 50], [90], [[0, 0, 29, 69]]),
    "a token is generated": ([[[5, 68]]], [0, 1], [91], []),
    "one that comes in a later step": ([[[50, 60]]], [0, 20], [20], []),
    "no picture": ([[]], [0, 20], [20], []),
}


@pytest.fixture(scope="session")
def plans(tmp_path_factory, full_size) -> list:
    """Every GPU, every layout, every way to spread a model, and the CPU."""
    folder = tmp_path_factory.mktemp("layouts")
    compressed = write_checkpoint(folder / "ct", COMPRESSED)
    mixed = write_checkpoint(folder / "mixed", NVFP4 | {"quant_algo": "MIXED_PRECISION"})
    made = [VllmServer(VllmOptions(gpu=gpu)).plan(full_size) for gpu in GPUS]
    for options in (
        {"gpu": "gb10", "nodes": 2},
        {"gpu": "h200", "tensor_parallel": 2, "nodes": 2, "enforce_eager": True},
        {"gpu": "rtx-4090", "tensor_parallel": 4, "kv_cache_dtype": "fp8", "max_num_seqs": 16},
        {"gpu": "h100", "dtype": "float16", "gpu_memory_utilization": 0.5, "extra": ("--seed", "3")},
    ):
        made += [VllmServer(VllmOptions.parse(options, where="")).plan(folder_) for folder_ in (compressed, mixed)]
    from fourfold.demo import model_path

    return [*made, VllmCpuServer(VllmOptions(dtype="float32", max_num_seqs=4)).plan(model_path())]


@pytest.fixture(scope="session")
def answers(tmp_path_factory, plans) -> dict:
    layers = [[8, 256, 1024] if kind == "sliding_attention" else [2, 512, None] for kind in TEXT_CONFIG["layer_types"]]
    questions = {
        # What follows the program: `vllm serve MODEL ...` and `python -m MODULE --model MODEL ...`.
        "commands": [list(plan.command[2 if plan.command[0] == "vllm" else 3 :]) for plan in plans],
        "caches": [{"layers": layers, "in_flight": TOKENS_IN_FLIGHT, **case} for case in _CASES],
    }
    questions["spans"] = [case[:3] for case in _SPANS.values()]
    questions["commands"].append(["model", "--moe-backend", "marvin"])
    folder = tmp_path_factory.mktemp("vllm-says")
    (folder / "questions.json").write_text(json.dumps(questions))
    python = python_of(VLLM_CPU)
    program = Path(__file__).with_name("vllm_says.py")
    command = [python, program, folder / "questions.json", folder / "answers.json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads((folder / "answers.json").read_text())


def test_vllm_takes_every_flag_of_every_plan(plans, answers):
    *ours, planted = answers["commands"]
    assert "invalid choice: 'marvin'" in planted["error"]
    for plan, understood in zip(plans, ours, strict=True):
        assert "error" not in understood, (plan.command, understood)
        words = plan.command
        for flag, name in (
            ("--moe-backend", "moe_backend"), ("--linear-backend", "linear_backend"), ("--host", "host"),
            ("--kv-cache-dtype", "kv_cache_dtype"), ("--quantization", "quantization"), ("--dtype", "dtype"),
            ("--distributed-executor-backend", "distributed_executor_backend"),
        ):  # fmt: skip
            if flag in words:
                assert understood[name] == words[words.index(flag) + 1]
        for flag, name in (
            ("--port", "port"), ("--max-model-len", "max_model_len"), ("--max-num-seqs", "max_num_seqs"),
            ("--tensor-parallel-size", "tensor_parallel_size"), ("--kv-cache-memory-bytes", "kv_cache_memory_bytes"),
            ("--pipeline-parallel-size", "pipeline_parallel_size"),
        ):  # fmt: skip
            if flag in words:
                assert understood[name] == int(words[words.index(flag) + 1])
        assert understood["enable_expert_parallel"] == ("--enable-expert-parallel" in words)
        assert not understood["trust_remote_code"]


def test_keys_and_values_take_what_vllm_says(full_size, answers):
    facts = read_facts(full_size)
    ours = [facts.kv_bytes(case["tokens"], case["value_bytes"]) for case in _CASES]
    assert ours == answers["caches"]


@pytest.mark.parametrize("case", _SPANS)
def test_pictures_are_found_in_a_batch(case, answers):
    assert answers["spans"][list(_SPANS).index(case)] == _SPANS[case][3]
