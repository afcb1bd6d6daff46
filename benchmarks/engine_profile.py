"""Where the engine's calibration time goes: device time by kernel, of a cut of the full-size model. One JSON.

    python benchmarks/engine_profile.py FOLDER [--layers 6] [--batches 4] [--batch-size 16] [--sequence-length 1024]
                                        [--no-fuse] [--top 25]

FOLDER takes the random model. Needs a GPU. A layer's first batch compiles, the second records; its last but one is
measured by wall clock, its last under torch's profiler: what the wall has more than all kernels together is the host's.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from fourfold.checkpoint.index import TensorFolder
from fourfold.checkpoint.reader import TensorReader
from fourfold.conformance.full_size import full_size_config, make_full_size
from fourfold.engine.calibrate import Calibration
from fourfold.engine.model import LayerwiseModel
from fourfold.models.gemma4 import read_gemma4
from fourfold.progress import NoProgress

#: What a kernel belongs to, by words in its name; the first that fits.
PARTS = (
    ("products of experts", "GroupProblemShape"),
    ("attention", "sdpa|fmha|flash"),
    ("other products", "nvjet|gemm|cutlass"),
    ("norms", r"^triton_.*mean.*pow"),
    ("experts' compiled passes", "^triton_"),
    ("rows in the experts' order", "gather|index|sort|scatter|segment"),
    ("largest values", "MinMax|minmax|MaxOps|max_kernel"),
)


class Steps(NoProgress):
    """Wall time of every batch of every layer, the device's work included; profiles each layer's last one."""

    def __init__(self) -> None:
        self._last, self._total = 0.0, 0
        #: Seconds a batch, by layer.
        self.seconds: list[list[float]] = []
        self.profilers: list[profile] = []

    def begin(self, task: str, *, total: int | None, unit: str) -> None:
        """See :class:`fourfold.progress.Progress`."""
        self._total = (total or 0) if task.startswith("calibrate layer") else 0
        if self._total:
            self.seconds.append([])
        self._last = _now()

    def advance(self, amount: int = 1) -> None:
        """See :class:`fourfold.progress.Progress`."""
        if not self._total:
            return
        now = _now()
        self.seconds[-1].append(now - self._last)
        done = len(self.seconds[-1])
        if done == self._total - 1:
            self.profilers.append(profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]))
            self.profilers[-1].start()
        if done == self._total:
            self.profilers[-1].stop()
        self._last = _now()


def _now() -> float:
    torch.cuda.synchronize()
    return time.monotonic()


def kernels(profilers: list[profile]) -> tuple[Counter[str], Counter[str]]:
    """Microseconds, and calls, by kernel."""
    micros: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for kernel in (kernel for profiler in profilers for kernel in profiler.key_averages()):
        if kernel.device_type == DeviceType.CUDA:  # an equal one is made for every kernel
            micros[kernel.key] += kernel.self_device_time_total
            calls[kernel.key] += kernel.count
    return micros, calls


def parts(micros: Counter[str], scale: float) -> dict[str, float]:
    """Time by what a kernel does, as far as its name tells."""
    found: Counter[str] = Counter()
    for name, time_us in micros.items():
        found[next((part for part, words in PARTS if re.search(words, name)), "other passes")] += time_us * scale
    return {part: round(time_ms, 3) for part, time_ms in found.most_common()}


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """The figures."""
    if not (given.folder / "config.json").is_file():
        make_full_size(given.folder, full_size_config(given.layers, text_only=True))
    source = TensorFolder(given.folder)
    model = LayerwiseModel(
        given.folder, TensorReader(source), tuple(source.tensors), "cuda", "sdpa", fuse=not given.no_fuse
    )
    generator = torch.Generator().manual_seed(0)
    shape = (given.batch_size, given.sequence_length)
    batches = [
        {"input_ids": torch.randint(4, 2000, shape, generator=generator), "attention_mask": torch.ones(shape).long()}
        for _ in range(given.batches)
    ]
    steps = Steps()
    calibration = Calibration(model, read_gemma4(source), batches, steps)
    for _ in calibration.layers():
        pass
    micros, calls = kernels(steps.profilers)
    per_layer = 1e-3 / given.layers
    return {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "layers": given.layers,
        "tokens": shape[0] * shape[1],
        "batch_ms_by_layer": [[round(s * 1e3, 2) for s in layer] for layer in steps.seconds],
        "ms_a_layer": {
            "wall": round(sum(layer[-2] for layer in steps.seconds) * 1e3 / given.layers, 3),
            "kernels": round(sum(micros.values()) * per_layer, 3),
        },
        "parts_ms_a_layer": parts(micros, per_layer),
        "kernels_ms_a_layer": [
            [round(time_us * per_layer, 3), round(calls[name] / given.layers, 1), name[:140]]
            for name, time_us in micros.most_common(given.top)
        ],
    }


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--sequence-length", type=int, default=1024)
    parser.add_argument("--no-fuse", action="store_true")
    parser.add_argument("--top", type=int, default=25)
    print(json.dumps(measure(parser.parse_args()), indent=1))


if __name__ == "__main__":
    main()
