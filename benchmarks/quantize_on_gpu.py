"""Every ModelOpt algorithm on the demo model, on the CPU and on a GPU: seconds, findings, and what differs.

    python benchmarks/quantize_on_gpu.py OUTPUT [--device cuda] [--algorithms max mse ...]

Runs the stages in this process, so it needs an environment with ModelOpt. Prints one JSON document.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

import fourfold_modelopt.hooks
from fourfold.artifact import Artifact
from fourfold.calibration import CalibrationSpec, build_token_set
from fourfold.checkpoint.atomic import atomic_folder
from fourfold.compare import Level, compare
from fourfold.config import Recipe
from fourfold.demo import model_path
from fourfold.errors import FourfoldError
from fourfold.manifest import Component, sha256_files
from fourfold.pipeline import write_checkpoint_manifest
from fourfold.plugins import Registry, Role, build_plugin_manager
from fourfold.progress import NoProgress
from fourfold.stages.quantize import run_quantize
from fourfold.stages.request import QuantizeRequest
from fourfold.verify import verify_checkpoint

ALGORITHMS = ("max", "mse", "four-over-six", "local-hessian", "gptq", "awq-clip", "act-headroom")


def quantize(registry: Registry, folder: Path, tokens: Path, algorithm: str, device: str) -> dict[str, Any]:
    """One artifact, its checkpoint and the verifier's word on it."""
    output = folder / f"{algorithm}-{device}"
    output.mkdir()
    request = QuantizeRequest(
        model_path=model_path(),
        source_files=sha256_files(model_path(), skip=("README.md", "manifest.json")),
        tokens_path=tokens,
        tokens_sha256=None,
        output=output,
        recipe=Recipe(),
        unfuser=Component(name="reference"),
        quantizer=Component(name="modelopt", options={"algorithm": algorithm}),
        batch_size=16,
        device=device,
        seed=0,
    )
    start = time.monotonic()
    try:
        run_quantize(request, registry, NoProgress())
    except FourfoldError as error:
        return {"refused": str(error)}
    seconds = time.monotonic() - start
    exporter = registry.load(Role.EXPORTER, "modelopt")(registry.get(Role.EXPORTER, "modelopt").options())
    with atomic_folder(folder / f"{algorithm}-{device}-checkpoint") as partial:
        exporter.export(Artifact(output), partial, NoProgress())
        write_checkpoint_manifest(Artifact(output), "modelopt", partial)
    report = verify_checkpoint(
        partial.parent / f"{algorithm}-{device}-checkpoint", source=model_path(), progress=NoProgress()
    )
    return {"seconds": round(seconds, 2), "findings": report.num_findings, "checks": sum(report.checked.values())}


def difference(a: Path, b: Path) -> dict[str, Any]:
    """How far two artifacts of one algorithm agree, by part."""
    report = compare(a, b, level=Level.DECODED, source=model_path(), progress=NoProgress())
    parts = {name: part.model_dump() for name, part in report.parts.items()}
    return {"tensors": report.tensors.model_dump(), "parts": parts, "causes": report.causes}


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--algorithms", nargs="+", default=ALGORITHMS)
    parser.add_argument("--compare-with-cpu", nargs="*", default=("max",))
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True)
    registry = Registry(build_plugin_manager([fourfold_modelopt.hooks]))
    tokens = arguments.output / "tokens"
    spec = CalibrationSpec(source="demo", samples=64, sequence_length=256)
    build_token_set(spec, model_path()).save(tokens)
    results: dict[str, Any] = {"torch": torch.__version__, "device": arguments.device, "runs": {}, "against_cpu": {}}
    if arguments.device.startswith("cuda"):
        results["gpu"] = torch.cuda.get_device_name(arguments.device)
    for algorithm in arguments.algorithms:
        results["runs"][algorithm] = quantize(registry, arguments.output, tokens, algorithm, arguments.device)
        print(algorithm, results["runs"][algorithm], flush=True)
    for algorithm in arguments.compare_with_cpu:
        run = quantize(registry, arguments.output, tokens, algorithm, "cpu")
        folders = [arguments.output / f"{algorithm}-{device}" for device in (arguments.device, "cpu")]
        results["against_cpu"][algorithm] = run | difference(*folders)
    if torch.cuda.is_available():
        results["peak_gpu_bytes"] = torch.cuda.max_memory_allocated()
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
