"""How fast the verifier reads, against sha256 of the same files. Prints JSON.

    python benchmarks/verify_speed.py [--megabytes 300] [--threads 1]

Builds a random Gemma 4 mixture of experts with the real matrix sizes (hidden 2816, expert width 704) and as many
experts as make a checkpoint of the size asked for, quantizes it with the reference codec and exports it. Then, each
in a process of its own and with the files in the page cache: sha256, verify alone, verify with its manifest (which
hashes every file), verify against the source. Peak memory is that process's, the interpreter and torch included;
``rss_import`` is what importing them alone takes. ``of_sha256`` compares bytes per second of processor time, which
other work on the machine changes least.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HIDDEN, WIDTH, LAYERS = 2816, 704, 2
BYTES_PER_WEIGHT = 4.5 / 8


def build(folder: Path, megabytes: int) -> tuple[Path, Path]:
    """Source and checkpoint folders of about ``megabytes`` of checkpoint."""
    import torch

    from fourfold.artifact import Artifact, ArtifactWriter
    from fourfold.checkpoint.index import TensorFolder
    from fourfold.checkpoint.stream import ShardWriter
    from fourfold.config import Recipe
    from fourfold.interfaces.quantizer import QuantizeJob
    from fourfold.manifest import sha256_files
    from fourfold.models.gemma4 import read_gemma4
    from fourfold.nvfp4 import quantize
    from fourfold.progress import NoProgress
    from fourfold.verify.expected import imagine_source
    from fourfold_modelopt.exporter import ModelOptExporter

    source, artifact, checkpoint = (folder / name for name in ("source", "artifact", "checkpoint"))
    for path in (source, artifact, checkpoint):
        path.mkdir()
    experts = max(4, round((megabytes * 1e6 / BYTES_PER_WEIGHT / LAYERS - 52e6) / (3 * WIDTH * HIDDEN)))
    config = model_config(experts)
    (source / "config.json").write_text(json.dumps(config), encoding="utf-8")
    torch.manual_seed(0)
    shards = ShardWriter(source)
    for entry in imagine_source(config, source).tensors.values():
        shards.add(entry.name, torch.randn(entry.shape, dtype=torch.bfloat16) * 0.02 + (len(entry.shape) == 1))
    shards.finish()
    index = TensorFolder(source)
    gemma = read_gemma4(index)
    job = QuantizeJob(
        model_path=source, source=index, gemma=gemma, targets=tuple(gemma.linears.values()), recipe=Recipe(),
        tokens=None,
        batch_size=1, unfuser_name="none", unfuser=None, device="cpu", seed=0,
    )  # fmt: skip
    writer = ArtifactWriter(artifact, job)
    scale = torch.tensor(0.15 / 2688)
    for module in job.targets:
        writer.add_weight(module, quantize(module.read(index), global_scale=scale), 0.005)
    facts = {"unfuser": {"name": "none"}, "quantizer": {"name": "codec"}, "packages": {"fourfold": "0.1.0"}}
    writer.finish({"source_files": {}, **facts})
    made = Artifact(artifact)
    ModelOptExporter(None).export(made, checkpoint, NoProgress())
    record = {"kind": "checkpoint", "layout": "modelopt", "files": sha256_files(checkpoint)}
    made.manifest.model_copy(update=record).write(checkpoint)
    return source, checkpoint


def model_config(experts: int) -> dict[str, object]:
    """A Gemma 4 config with the 26B model's widths."""
    text = {
        "hidden_size": HIDDEN, "moe_intermediate_size": WIDTH, "intermediate_size": 2112, "num_hidden_layers": LAYERS,
        "num_experts": experts, "top_k_experts": 8, "enable_moe_block": True, "vocab_size": 1024, "head_dim": 256,
        "num_attention_heads": 16, "num_key_value_heads": 8, "layer_types": ["sliding_attention"] * LAYERS,
    }  # fmt: skip
    return {
        "model_type": "gemma4", "architectures": ["Gemma4ForConditionalGeneration"], "tie_word_embeddings": True,
        "text_config": text,
    }  # fmt: skip


def measure(task: str, checkpoint: Path, source: Path, threads: int) -> dict[str, float | int | bool]:
    """One task in this process: seconds, bytes of the checkpoint's tensors, peak memory."""
    import torch

    from fourfold.manifest import sha256_files
    from fourfold.verify import verify_checkpoint

    torch.set_num_threads(threads)
    num_bytes = sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))
    before = peak_rss_mb()
    start, cpu = time.perf_counter(), time.process_time()
    ok = True
    if task == "sha256":
        sha256_files(checkpoint)
    else:
        report = verify_checkpoint(checkpoint, source=source if task == "verify_source" else None)
        # A generated model has no tokenizer; nothing else may be wrong with it.
        ok = {finding.rule for finding in report.findings} <= {"FF120", "FF121", "FF122", "FF123"}
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    return {
        "seconds": round(seconds, 3),
        "mb_per_s": round(num_bytes / 1e6 / seconds, 1),
        "cpu_seconds": round(cpu, 3),
        "mb_per_cpu_s": round(num_bytes / 1e6 / cpu, 1),
        "checkpoint_mb": round(num_bytes / 1e6, 1),
        "peak_rss_mb": peak_rss_mb(),
        "rss_import_mb": before,
        "ok": ok,
    }


def peak_rss_mb() -> int:
    """Peak resident memory of this process; ru_maxrss would start from the parent's."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return round(int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024)


def main() -> None:
    """Build, then measure each task in a process of its own."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--megabytes", type=int, default=300)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--task", nargs=3, metavar=("TASK", "CHECKPOINT", "SOURCE"), help="used by this script itself")
    options = parser.parse_args()
    if options.task:
        task, checkpoint, source = options.task
        print(json.dumps(measure(task, Path(checkpoint), Path(source), options.threads)))
        return
    with tempfile.TemporaryDirectory() as name:
        source_path, checkpoint_path = build(Path(name), options.megabytes)
        results: dict[str, Any] = {"threads": options.threads}
        for task in ("sha256", "verify", "verify_manifest", "verify_source"):
            if task != "verify_manifest":
                (checkpoint_path / "manifest.json").rename(Path(name) / "manifest.json")
            command = [sys.executable, __file__, "--threads", str(options.threads)]
            command += ["--task", task, str(checkpoint_path), str(source_path)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            results[task] = json.loads(done.stdout)
            if task != "verify_manifest":
                (Path(name) / "manifest.json").rename(checkpoint_path / "manifest.json")
        plain = results["sha256"]["mb_per_cpu_s"]
        for task in ("verify", "verify_manifest", "verify_source"):
            results[task]["of_sha256"] = round(results[task]["mb_per_cpu_s"] / plain, 3)
        print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
