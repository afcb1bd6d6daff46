"""Ours against ModelOpt and llm-compressor: one random model, one token set, time per stage and peak memory. One JSON.

    python benchmarks/engine.py FOLDER [--layers 30] [--experts 128] [--samples 4096] [--sequence-length 1024]
                                       [--batch-size 16] [--device cuda] [--runs reference reference-stream ...]

The model is :mod:`fourfold.conformance.full_size`'s, cut to ``--layers`` and ``--experts``; FOLDER takes it, the
tokens and the artifacts, and what it holds of the first two is used again. Every run is the real quantize stage in a
process of its own, in its backend's environment.
Times are between a stage's own progress events; ``start`` is what comes before the first (interpreter, imports).
``peak_rss_gb`` is the process tree's, sampled every half second, without pages of mapped files
(``peak_rss_with_files_gb`` has them); ``peak_device_gb`` is what ``nvidia-smi`` says above the level before.

"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

from fourfold.calibration import CalibrationSpec, build_token_set
from fourfold.config import Recipe
from fourfold.conformance.full_size import full_size_config, make_full_size
from fourfold.environments import ensure_environment
from fourfold.errors import FourfoldError
from fourfold.manifest import Component
from fourfold.plugins import Registry, build_plugin_manager
from fourfold.progress import NoProgress
from fourfold.stages.process import run_in_process
from fourfold.stages.request import QuantizeRequest

#: Run -> quantizer, its options, unfuser, scheme.
RUNS: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "reference": ("reference", {}, "reference", "W4A4"),
    "reference-fused": ("reference", {"fuse": True}, "reference", "W4A4"),
    "reference-stream-fused": ("reference", {"stream": True, "fuse": True}, "reference", "W4A4"),
    "reference-stream": ("reference", {"stream": True}, "reference", "W4A4"),
    "reference-stream-spilled": ("reference", {"stream": True, "host_memory_gib": 0.0}, "reference", "W4A4"),
    "reference-weights-only": ("reference", {}, "reference", "W4A16"),
    "reference-mse": ("reference", {"algorithm": "mse"}, "reference", "W4A16"),
    "reference-four-over-six": ("reference", {"algorithm": "four-over-six"}, "reference", "W4A16"),
    "reference-local-hessian": ("reference", {"algorithm": "local-hessian"}, "reference", "W4A4"),
    "reference-gptq": ("reference", {"algorithm": "gptq", "stream": True}, "reference", "W4A4"),
    "modelopt": ("modelopt", {}, "modelopt", "W4A4"),
    "modelopt-unfused": ("modelopt", {}, "reference", "W4A4"),
    "llmcompressor": ("llmcompressor", {}, "llmcompressor", "W4A4"),
}
_SAMPLE_S = 0.5
_GB = 1e9


class Stopwatch:
    """Progress that keeps when each task began and how far it came."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self.tasks: list[dict[str, Any]] = [{"task": "start", "began": 0.0}]

    def begin(self, task: str, *, total: int | None, unit: str) -> None:
        """See :class:`fourfold.progress.Progress`."""
        self.tasks.append({"task": task, "began": self._now(), "total": total, "unit": unit, "events": []})

    def advance(self, amount: int = 1) -> None:
        """See :class:`fourfold.progress.Progress`."""
        events = self.tasks[-1]["events"]
        events.append((self._now(), (events[-1][1] if events else 0) + amount))

    def note(self, text: str) -> None:
        """Nothing."""

    def _now(self) -> float:
        return time.monotonic() - self._start

    def stages(self) -> dict[str, float]:
        """Seconds by task; tasks of one layer each are added up."""
        seconds: dict[str, float] = {}
        ends = [task["began"] for task in self.tasks[1:]] + [self._now()]
        for task, end in zip(self.tasks, ends, strict=True):
            name = " ".join(word for word in task["task"].split() if not word.isdigit())
            seconds[name] = round(seconds.get(name, 0.0) + end - task["began"], 2)
        return seconds

    def seconds_per_unit(self) -> dict[str, float]:
        """After the first event of a task, so without warming up."""
        found = {}
        for task in self.tasks:
            events = task.get("events") or []
            if len(events) > 1 and events[-1][1] > events[0][1]:
                found[f"{task['task']} ({task['unit']})"] = round(
                    (events[-1][0] - events[0][0]) / (events[-1][1] - events[0][1]), 5
                )
        return found


class MemoryWatch(threading.Thread):
    """Peak memory of this process's children, and of the GPU."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._ended = threading.Event()
        self.own, self.with_files, self.device = 0.0, 0.0, 0.0
        self._device_before = device_gb()

    def run(self) -> None:
        """Sample until :meth:`finish`."""
        while not self._ended.wait(_SAMPLE_S):
            statuses = [status for pid in children() if (status := memory_of(pid))]
            self.own = max(self.own, sum(s["RssAnon"] + s["RssShmem"] for s in statuses))
            self.with_files = max(self.with_files, sum(s["VmRSS"] for s in statuses))
            self.device = max(self.device, device_gb() - self._device_before)

    def finish(self) -> dict[str, float]:
        """The peaks."""
        self._ended.set()
        self.join()
        peaks = {"peak_rss_gb": self.own, "peak_rss_with_files_gb": self.with_files, "peak_device_gb": self.device}
        return {name: round(value, 2) for name, value in peaks.items()}


def children() -> list[int]:
    """All descendants of this process."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    import os

    found, grown = {os.getpid()}, True
    while grown:
        more = {pid for pid, parent in parents.items() if parent in found} - found
        grown = bool(more)
        found |= more
    return sorted(found - {os.getpid()})


def memory_of(pid: int) -> dict[str, float]:
    """GB of a process by the kernel's names; empty for one that is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    wanted = {"VmRSS", "RssAnon", "RssShmem"}
    found = {line.split(":")[0]: int(line.split()[1]) * 1024 / _GB for line in lines if line.split(":")[0] in wanted}
    return found if len(found) == len(wanted) else {}


def device_gb() -> float:
    """GB in use on the first GPU; 0 without one."""
    if shutil.which("nvidia-smi") is None:
        return 0.0
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "--id=0"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return float(answer) * 2**20 / _GB if answer else 0.0


def quantize(name: str, given: argparse.Namespace, model: Path, tokens: Path, registry: Registry) -> dict[str, Any]:
    """One run's figures; a refusal is one of them."""
    quantizer, options, unfuser, scheme = RUNS[name]
    output = given.folder / f"run-{name}"
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir()
    entry = registry.quantizer(quantizer)
    needs_tokens = entry.options.parse(options, where="quantizer").reads_tokens(Recipe(scheme=scheme))
    request = QuantizeRequest(
        model_path=model.absolute(),
        source_files={},
        tokens_path=tokens.absolute() if needs_tokens else None,
        tokens_sha256=None,
        output=output.absolute(),
        recipe=Recipe(scheme=scheme),
        unfuser=Component(name=unfuser),
        quantizer=Component(name=quantizer, options=options),
        batch_size=given.batch_size,
        device=given.device,
        seed=0,
    )
    watch, clock = MemoryWatch(), Stopwatch()
    watch.start()
    start = time.monotonic()
    result: dict[str, Any] = {}
    try:
        run_in_process(
            ensure_environment(entry.environment, NoProgress()), request, given.folder / f"{name}.log", clock
        )
    except FourfoldError as error:
        result["error"] = str(error)[:500]
    result |= {"seconds": round(time.monotonic() - start, 2), "stages": clock.stages()}
    result |= {"seconds_per_unit": clock.seconds_per_unit(), **watch.finish()}
    result["artifact_gb"] = round(sum(f.stat().st_size for f in output.glob("*.safetensors")) / _GB, 3)
    if not given.keep:
        shutil.rmtree(output, ignore_errors=True)
    return result


def main() -> None:
    """Build what is missing, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int)
    parser.add_argument("--experts", type=int)
    parser.add_argument("--vocabulary", type=int)
    parser.add_argument("--samples", type=int, default=4096)
    parser.add_argument("--sequence-length", type=int, default=1024)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--keep", action="store_true", help="keep the artifacts")
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=["reference", "modelopt", "llmcompressor"])
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    model, tokens = given.folder / "model", given.folder / f"tokens-{given.samples}x{given.sequence_length}"
    if not model.is_dir():
        config = full_size_config(given.layers, given.experts, given.vocabulary, text_only=True)
        make_full_size(model, config)
    spec = CalibrationSpec(
        source="demo", samples=given.samples, sequence_length=given.sequence_length, batch_size=given.batch_size
    )
    if not tokens.is_dir():
        build_token_set(spec, model).save(tokens)
    registry = Registry(build_plugin_manager())
    results: dict[str, Any] = {
        "model": {"layers": given.layers, "experts": given.experts, "vocabulary": given.vocabulary},
        "tokens": {"samples": given.samples, "sequence_length": given.sequence_length, "batch_size": given.batch_size},
        "device": given.device,
        "runs": {},
    }
    for name in given.runs:
        results["runs"][name] = quantize(name, given, model, tokens, registry)
        # As they come: a run that is cut short keeps the figures before it.
        (given.folder / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
