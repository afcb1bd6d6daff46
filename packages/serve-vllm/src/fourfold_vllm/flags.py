"""Each flag of a vLLM server, chosen from checkpoint and machine, with its reason in one line.

Flags are those of vLLM 0.32; the tests parse every printed command with vLLM's own parser.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from fourfold.errors import ConfigError, DeviceError
from fourfold.hardware import sm_text
from fourfold_vllm.facts import CheckpointFacts
from fourfold_vllm.hardware import Machine
from fourfold_vllm.memory import Budget
from fourfold_vllm.options import VllmOptions

#: Marlin and FlashInfer multiply experts in tiles of this many columns.
_TILE = 64
_UTILIZATION, _UNIFIED_UTILIZATION = 0.9, 0.85
#: Sequences of full length that the CPU's cache is made for, unless fewer run at once.
_CPU_SEQUENCES = 16


@dataclass(frozen=True)
class Flag:
    """One flag with its value (None: a switch) and its reason. One that starts with no ``-`` is told, not passed."""

    name: str
    value: str | None
    why: str


@dataclass(frozen=True, kw_only=True)
class Kv:
    """How keys and values are stored: the flag's value, the bytes of one value, and why."""

    dtype: str
    value_bytes: int
    why: str


def quantization_flags(facts: CheckpointFacts) -> list[Flag]:
    """The method, so that a checkpoint whose config was lost is refused instead of served as what it is not."""
    if facts.quantization is None:
        return []
    resolved = " (vLLM finds NVFP4 in it: modelopt_fp4)" if facts.quantization == "modelopt" and facts.is_nvfp4 else ""
    return [Flag("--quantization", facts.quantization, f"the checkpoint's layout{resolved}")]


def kernel_flags(facts: CheckpointFacts, options: VllmOptions, machine: Machine) -> list[Flag]:
    """MoE and GEMM backends of an NVFP4 checkpoint; none for any other, and none where the emulation computes."""
    if not facts.is_nvfp4:
        return []
    if machine.sm is None or options.emulation == "on":
        return []
    why = machine.why_marlin
    if why is not None:
        kept = "" if facts.weight_only else "; weights alone: activations stay BF16, input scales are not read"
        return [
            Flag("--moe-backend", "marlin", f"{why}: Marlin for the experts{kept}"),
            Flag("--linear-backend", "marlin", f"{why}: Marlin for attention and dense layers"),
        ]
    return [Flag("no --moe-backend", None, f"SM {sm_text(machine.sm)} multiplies FP4: vLLM takes its fastest kernel")]


def eager_flags(facts: CheckpointFacts, options: VllmOptions, machine: Machine) -> list[Flag]:
    """Neither compilation nor graphs, where asked for or where the emulation computes experts on a GPU."""
    if options.enforce_eager:
        return [Flag("--enforce-eager", None, "asked for: no compilation, no graphs")]
    if facts.is_nvfp4 and options.emulation == "on" and machine.sm is not None:
        return [Flag("--enforce-eager", None, "the emulation of experts cannot be captured in a CUDA graph")]
    return []


def choose_kv(facts: CheckpointFacts, options: VllmOptions, machine: Machine) -> Kv:
    """The KV cache's type. FP8 costs accuracy or speed on some GPUs, so it is a choice, not a habit."""
    plain = 4 if options.dtype == "float32" else 2
    if options.kv_cache_dtype is not None:
        follows = options.kv_cache_dtype == "auto" and facts.states_fp8_kv
        size = 1 if follows or options.kv_cache_dtype == "fp8" else plain
        return Kv(dtype=options.kv_cache_dtype, value_bytes=size, why="asked for")
    if facts.states_fp8_kv:
        return Kv(dtype="auto", value_bytes=1, why="the checkpoint states FP8 and carries the scales")
    if machine.sm == (12, 1):
        why = "at long contexts reading BF16 keys and values takes longer than reading the weights; published so"
        return Kv(dtype="fp8", value_bytes=1, why=why)
    whys = {
        (12, 0): "BF16; FP8 attention with head sizes 256 and 512 was four times slower on this GPU",
        (10, 0): "BF16; FP8 attention also rounds queries here and cost two points of MMLU (sglang#26518)",
        (10, 3): "BF16; FP8 attention also rounds queries here and cost two points of MMLU (sglang#26518)",
    }
    why = whys.get(machine.sm or (0, 0), "the model's own type; FP8 (--kv-cache-dtype fp8) halves it")
    return Kv(dtype="auto", value_bytes=plain, why=why)


def utilization(options: VllmOptions, machine: Machine) -> Flag:
    """Share of a GPU's memory that vLLM may use."""
    if options.gpu_memory_utilization is not None:
        return Flag("--gpu-memory-utilization", f"{options.gpu_memory_utilization:g}", "asked for")
    if machine.unified_memory:
        why = "the operating system lives in the same memory"
        return Flag("--gpu-memory-utilization", f"{_UNIFIED_UTILIZATION:g}", why)
    return Flag("--gpu-memory-utilization", f"{_UTILIZATION:g}", "a tenth for the driver and what else runs")


def choose_ranks(budget: Budget, options: VllmOptions) -> int:
    """GPUs of one machine that share the model: as asked for, or the fewest that fit it.

    Raises :class:`ConfigError` for a number that does not divide the attention heads or is more than there are.
    """
    machine, heads = budget.machine, budget.facts.num_heads
    if options.tensor_parallel is not None:
        wanted = options.tensor_parallel
        if heads % wanted:
            divisors = ", ".join(str(n) for n in range(1, heads + 1) if heads % n == 0)
            raise ConfigError(f"tensor_parallel {wanted} does not divide {heads} attention heads; these do: {divisors}")
        if machine.sm is not None and wanted > machine.num_gpus:
            raise DeviceError(f"tensor_parallel {wanted}: this machine has {machine.num_gpus} GPUs")
        return wanted
    length = min(options.max_model_len or budget.facts.max_positions, budget.facts.max_positions)
    counts = [n for n in range(1, max(machine.num_gpus, 1) + 1) if heads % n == 0]
    for count in counts:
        if replace(budget, ranks=count).fits(length):
            return count
    return counts[-1]


def parallel_flags(facts: CheckpointFacts, options: VllmOptions, ranks: int) -> list[Flag]:
    """Tensor parallelism, and whole experts on each rank where their width cannot be cut."""
    flags: list[Flag] = []
    if ranks > 1:
        why = "asked for" if options.tensor_parallel else "the fewest GPUs that hold weights and one full context"
        flags.append(Flag("--tensor-parallel-size", str(ranks), why))
    width, cuts = facts.expert_width, facts.expert_width % (ranks * _TILE)
    expert_parallel = options.expert_parallel
    if expert_parallel and ranks == 1:
        raise ConfigError("expert_parallel needs more than one GPU: give tensor_parallel too")
    if expert_parallel is None and ranks > 1 and facts.num_experts and cuts:
        share = f"{width}/{ranks} = {width / ranks:g}"
        why = f"experts of width {share} are no multiple of the kernels' {_TILE}: whole experts per GPU (vllm#39595)"
        flags.append(Flag("--enable-expert-parallel", None, why))
    elif expert_parallel:
        flags.append(Flag("--enable-expert-parallel", None, "asked for"))
    if options.nodes > 1:
        flags.append(Flag("--pipeline-parallel-size", str(options.nodes), "each machine holds its share of the layers"))
        flags.append(Flag("--distributed-executor-backend", "ray", "vLLM's own way to more than one machine"))
    return flags


def sequence_flags(budget: Budget, options: VllmOptions) -> list[Flag]:
    """Longest context and number of streams; :class:`DeviceError` with the arithmetic when it cannot fit."""
    facts, machine = budget.facts, budget.machine
    if options.max_model_len is not None:
        if options.max_model_len > facts.max_positions:
            raise ConfigError(f"max_model_len {options.max_model_len}: the model has {facts.max_positions} positions")
        if not budget.fits(options.max_model_len):
            raise DeviceError(budget.refusal(options.max_model_len))
        tokens = options.max_model_len
    else:
        tokens = budget.longest()
    all_of_it = "the model's full context" if tokens == facts.max_positions else "the longest that fits"
    flags = [Flag("--max-model-len", str(tokens), f"{all_of_it}: {budget.arithmetic(tokens)}")]
    if options.max_num_seqs is not None:
        flags.append(Flag("--max-num-seqs", str(options.max_num_seqs), "asked for"))
    elif machine.unified_memory:
        flags.append(Flag("--max-num-seqs", "4", "as published: a machine for few users; raise it for throughput"))
    if machine.sm is None:
        streams = min(options.max_num_seqs or _CPU_SEQUENCES, _CPU_SEQUENCES)
        wanted = max(2**28, streams * budget.kv_bytes(tokens))
        room = min(wanted, budget.kv_room_bytes)
        flags.append(Flag("--kv-cache-memory-bytes", str(room), "a bound; vLLM would take 92 % of the host's memory"))
    return flags
