"""GPUs by name: what their makers publish, and what ``nvidia-smi`` says is here. Imports no torch.

Rates are *dense*: NVIDIA's headline figures count 2:4 sparsity, which no path here uses, so they are halved where a
source gives only those. Rates of 16- and 8-bit floats are with FP32 accumulation. A rate is None where the maker
publishes none, or where the GPU has no such instruction; :attr:`Gpu.has_fp4` tells the two apart.

Memory is what the maker states, in bytes of 10^9; what a process may use is less, and is the server's own arithmetic.
Sources stand at each entry: NVIDIA's architecture papers ("paper"), data sheets and product pages.
Compute capability: NVIDIA, "CUDA GPU Compute Capability", developer.nvidia.com/cuda-gpus.
"""

from __future__ import annotations

import os
import shutil
import subprocess

from fourfold.config import Config
from fourfold.errors import DeviceError, UnknownNameError

_TIMEOUT_S = 20.0
_TERA = 1e12


class Gpu(Config):
    """One kind of GPU. ``bandwidth`` is bytes a second, the rates dense operations a second (see the module)."""

    name: str
    summary: str
    compute_capability: tuple[int, int]
    memory_bytes: int
    bandwidth: float
    bf16_flops: float | None
    fp8_flops: float | None
    fp4_flops: float | None
    #: Host and device share one memory: the operating system and every process live in ``memory_bytes`` too.
    unified_memory: bool = False
    #: How ``nvidia-smi`` may name it: every word of one of these is in the name.
    aliases: tuple[str, ...]

    @property
    def sm(self) -> str:
        """The architecture as people write it: ``12.1``."""
        return sm_text(self.compute_capability)

    @property
    def has_fp4(self) -> bool:
        """Whether tensor cores multiply FP4: from compute capability 10.0 on."""
        return self.compute_capability >= (10, 0)


class LocalGpu(Config):
    """A GPU of this machine as the driver reports it; ``kind`` is its entry in the table, if it has one."""

    index: int
    reported_name: str
    compute_capability: tuple[int, int]
    memory_bytes: int
    kind: Gpu | None


def sm_text(compute_capability: tuple[int, int]) -> str:
    """``(12, 1)`` as ``12.1``."""
    return "{}.{}".format(*compute_capability)


def _gpu(
    name: str,
    summary: str,
    compute_capability: tuple[int, int],
    gigabytes: int,
    gigabytes_s: float,
    tflops: tuple[float | None, float | None, float | None],
    *aliases: str,
    unified_memory: bool = False,
) -> Gpu:
    """One line of the table; ``tflops`` are BF16, FP8 and FP4, dense."""
    bf16, fp8, fp4 = (None if rate is None else rate * _TERA for rate in tflops)
    return Gpu(
        name=name,
        summary=summary,
        compute_capability=compute_capability,
        memory_bytes=gigabytes * 10**9,
        bandwidth=gigabytes_s * 1e9,
        bf16_flops=bf16,
        fp8_flops=fp8,
        fp4_flops=fp4,
        aliases=aliases,
        unified_memory=unified_memory,
    )


_TABLE = (
    # DGX Spark product page: 128 GB LPDDR5x, 273 GB/s, 1 PFLOP FP4 with sparsity; BF16 and FP8 are not published.
    _gpu("gb10", "DGX Spark, GB10", (12, 1), 128, 273, (None, None, 500), "GB10", unified_memory=True),
    # RTX Blackwell paper, GeForce RTX 5090 table.
    _gpu("rtx-5090", "GeForce RTX 5090", (12, 0), 32, 1792, (209.5, 419, 1676), "RTX 5090"),
    # RTX PRO Blackwell paper and data sheets. Order matters: the plain name is in the longer ones.
    _gpu("rtx-pro-6000-max-q", "RTX PRO 6000 Blackwell Max-Q", (12, 0), 96, 1792, (438.9, 877.9, 1755.7),
         "RTX PRO 6000 Blackwell Max-Q"),
    _gpu("rtx-pro-6000-server", "RTX PRO 6000 Blackwell Server Edition", (12, 0), 96, 1597, (None, None, 2000),
         "RTX PRO 6000 Blackwell Server"),
    _gpu("rtx-pro-6000", "RTX PRO 6000 Blackwell Workstation", (12, 0), 96, 1792, (503.8, 1007.6, 2015.2),
         "RTX PRO 6000 Blackwell"),
    # DGX B300 data sheet, an eighth: 2.3 TB, 64 TB/s, FP4 108 PFLOPS dense, FP8 72 and BF16 36 with sparsity.
    _gpu("b300", "B300", (10, 3), 288, 8000, (2250, 4500, 13500), "B300"),
    # GB300 NVL72 page, a 72nd: 20 TB, 576 TB/s, FP4 1,080 PFLOPS dense, FP8 720 and BF16 360 with sparsity.
    _gpu("gb300", "GB300, one GPU", (10, 3), 279, 8000, (2500, 5000, 15000), "GB300"),
    # DGX B200 data sheet, an eighth: 1,440 GB, 64 TB/s, FP4 144, FP8 72, BF16 36 PFLOPS with sparsity.
    _gpu("b200", "B200", (10, 0), 180, 8000, (2250, 4500, 9000), "B200"),
    # GB200 NVL72 page, a 72nd: 13.4 TB, 576 TB/s, FP4 1,440, FP8 720, BF16 360 PFLOPS with sparsity.
    _gpu("gb200", "GB200, one GPU", (10, 0), 186, 8000, (2500, 5000, 10000), "GB200"),
    # H200 data sheet.
    _gpu("h200", "H200 SXM", (9, 0), 141, 4800, (989.5, 1979, None), "H200"),
    # H100 data sheet: SXM, PCIe and NVL columns (PCIe from the Hopper paper).
    _gpu("h100-nvl", "H100 NVL", (9, 0), 94, 3900, (835.5, 1670.5, None), "H100 NVL"),
    _gpu("h100-pcie", "H100 PCIe", (9, 0), 80, 2000, (756, 1513, None), "H100 PCIe"),
    _gpu("h100", "H100 SXM", (9, 0), 80, 3350, (989.4, 1978.9, None), "H100 80GB HBM3", "H100 SXM"),
    # Data sheets of L40S and L4; RTX 6000 Ada and RTX 4090 from the Ada papers.
    _gpu("l40s", "L40S", (8, 9), 48, 864, (362, 733, None), "L40S"),
    _gpu("l4", "L4", (8, 9), 24, 300, (121, 242.5, None), "L4"),
    _gpu("rtx-6000-ada", "RTX 6000 Ada", (8, 9), 48, 960, (364.2, 728.5, None), "RTX 6000 Ada"),
    _gpu("rtx-4090", "GeForce RTX 4090", (8, 9), 24, 1008, (165.2, 330.3, None), "RTX 4090"),
    # Ampere GA102 paper.
    _gpu("rtx-3090", "GeForce RTX 3090", (8, 6), 24, 936, (71, None, None), "RTX 3090"),
    # A100 data sheet: 80 GB SXM, 80 GB PCIe, 40 GB.
    _gpu("a100", "A100 80 GB SXM", (8, 0), 80, 2039, (312, None, None), "A100-SXM4-80GB"),
    _gpu("a100-pcie", "A100 80 GB PCIe", (8, 0), 80, 1935, (312, None, None), "A100 80GB PCIe"),
    _gpu("a100-40", "A100 40 GB", (8, 0), 40, 1555, (312, None, None), "A100-SXM4-40GB", "A100-PCIE-40GB"),
)  # fmt: skip

#: The table by name.
GPUS: dict[str, Gpu] = {gpu.name: gpu for gpu in _TABLE}


def gpu_by_name(name: str) -> Gpu:
    """The entry of that name; :class:`UnknownNameError` lists the known ones."""
    try:
        return GPUS[name]
    except KeyError:
        raise UnknownNameError("GPU", name, tuple(GPUS)) from None


def recognise(reported_name: str) -> Gpu | None:
    """The entry for a driver's name such as ``NVIDIA GeForce RTX 5090``; None for a GPU the table lacks."""
    words = reported_name.lower().replace("-", " ").split()
    for gpu in _TABLE:
        if any(set(alias.lower().replace("-", " ").split()) <= set(words) for alias in gpu.aliases):
            return gpu
    return None


def detect() -> tuple[LocalGpu, ...]:
    """The NVIDIA GPUs of this machine, by ``nvidia-smi``; empty where there is none or no driver.

    Raises :class:`DeviceError` when ``nvidia-smi`` is here and fails: a broken driver is not a machine without a GPU.
    """
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    command = [program, "--query-gpu=index,name,compute_cap,memory.total", "--format=csv,noheader,nounits"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise DeviceError(f"nvidia-smi gave no answer in {_TIMEOUT_S:.0f} s; is the driver well?") from None
    if "No devices were found" in result.stdout:
        return ()
    if result.returncode != 0:
        detail = " ".join((result.stderr or result.stdout).split())[:200]
        raise DeviceError(f"nvidia-smi failed (exit code {result.returncode}): {detail}")
    return tuple(_parse_line(line) for line in result.stdout.splitlines() if line.strip())


def _parse_line(line: str) -> LocalGpu:
    fields = [field.strip() for field in line.split(",")]
    if len(fields) != 4 or not fields[0].isdigit():
        raise DeviceError(f"nvidia-smi answered {line!r}, not index, name, compute capability and memory")
    index, name, capability, memory_mib = fields
    major, _, minor = capability.partition(".")
    if not (major.isdigit() and minor.isdigit()):
        raise DeviceError(f"nvidia-smi gives GPU {index} the compute capability {capability!r}")
    # Unified memory has no size of its own: the driver says [N/A], and the host's memory is the GPU's.
    memory = int(memory_mib) * 2**20 if memory_mib.isdigit() else host_memory_bytes()
    return LocalGpu(
        index=int(index),
        reported_name=name,
        compute_capability=(int(major), int(minor)),
        memory_bytes=memory,
        kind=recognise(name),
    )


def host_memory_bytes() -> int:
    """Bytes of this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
