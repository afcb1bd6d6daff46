"""The whole command of a server: flags with reasons, variables, the container's form, further machines."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from pathlib import Path

from fourfold.errors import ConfigError
from fourfold.interfaces.server import Reason, ServePlan
from fourfold_vllm.facts import CheckpointFacts, read_facts
from fourfold_vllm.flags import (
    Flag,
    choose_kv,
    choose_ranks,
    eager_flags,
    kernel_flags,
    parallel_flags,
    quantization_flags,
    sequence_flags,
    utilization,
)
from fourfold_vllm.hardware import Machine, find_machine
from fourfold_vllm.memory import Budget
from fourfold_vllm.options import VllmOptions

#: What the published command for the DGX Spark has and ours has not, with the reason.
_PUBLISHED_AND_DROPPED = (
    ("no --trust-remote-code", "vLLM and Transformers know Gemma 4; a checkpoint's own code is not to be run"),
    ("no VLLM_NVFP4_GEMM_BACKEND", "vLLM 0.32 no longer reads it; --linear-backend marlin says the same"),
    ("no mount of gemma4_patched.py", "this layout's keys load in an unpatched vLLM"),
    ("no mount of the hub's cache", "the checkpoint is a local folder"),
)


@dataclass(frozen=True, kw_only=True)
class Launch:
    """A decided server: the flags after the model, and the variables. The model itself is given when it is run."""

    facts: CheckpointFacts
    machine: Machine
    model_name: str
    flags: tuple[Flag, ...]
    variables: tuple[Flag, ...]
    extra: tuple[str, ...]

    @property
    def arguments(self) -> tuple[str, ...]:
        """The flags as words; what was given as it stands comes last and wins."""
        passed = [flag for flag in self.flags if flag.name.startswith("-")]
        return (*(word for flag in passed for word in (flag.name, flag.value) if word is not None), *self.extra)

    @property
    def environment(self) -> dict[str, str]:
        """The variables as a mapping."""
        return {flag.name: flag.value for flag in self.variables if flag.value is not None}


def decide(checkpoint: Path, options: VllmOptions, *, wants_gpu: bool, port: int) -> Launch:
    """Everything chosen, or a refusal before anything is loaded."""
    facts = read_facts(checkpoint)
    machine = find_machine(options, wants_gpu=wants_gpu)
    kv = choose_kv(facts, options, machine)
    share = utilization(options, machine)
    budget = Budget(
        facts=facts,
        machine=machine,
        weight_bytes=facts.weight_bytes,
        kv_value_bytes=kv.value_bytes,
        utilization=1.0 if machine.sm is None else float(share.value or 0),
        nodes=options.nodes,
    )
    if machine.sm is None and (options.nodes > 1 or (options.tensor_parallel or 1) > 1):
        raise ConfigError("vllm-cpu: nodes and tensor_parallel are for GPUs")
    variables = _emulation_variables(facts, options, machine, budget)
    if any(v.name == "FOURFOLD_DECODE" and v.value == "once" for v in variables):
        budget = replace(budget, weight_bytes=facts.decoded_bytes)
    budget = replace(budget, ranks=choose_ranks(budget, options))
    name = options.served_model_name or checkpoint.resolve().name
    flags = [
        *_address_flags(options, port, name),
        *quantization_flags(facts),
        Flag("--dtype", options.dtype, "of what is not quantized; auto is the checkpoint's"),
        *kernel_flags(facts, options, machine),
        Flag("--kv-cache-dtype", kv.dtype, kv.why),
        *([share] if machine.sm is not None else []),
        *parallel_flags(facts, options, budget.ranks),
        *sequence_flags(budget, options),
        *eager_flags(facts, options, machine),
        *_dropped(machine),
    ]
    return Launch(
        facts=facts, machine=machine, model_name=name, flags=tuple(flags), variables=variables, extra=options.extra
    )


def _address_flags(options: VllmOptions, port: int, name: str) -> list[Flag]:
    local = options.host in ("127.0.0.1", "localhost", "::1")
    why = "only this machine may ask; --host 0.0.0.0 for all" if local else "asked for"
    return [
        Flag("--host", options.host, why),
        Flag("--port", str(port), "one server a port"),
        Flag("--served-model-name", name, "what a request calls it"),
    ]


def _emulation_variables(
    facts: CheckpointFacts, options: VllmOptions, machine: Machine, budget: Budget
) -> tuple[Flag, ...]:
    """The plugin's variables; nothing for a checkpoint that is not NVFP4."""
    active = facts.is_nvfp4 and (options.emulation == "on" or (options.emulation == "auto" and machine.sm is None))
    if facts.is_nvfp4 and options.emulation == "off" and machine.sm is None:
        raise ConfigError("emulation off: vLLM has no NVFP4 kernels for CPUs; leave it at auto")
    if not active:
        if options.activations or options.input_scale_rule or options.decode:
            raise ConfigError(
                "activations, input_scale_rule and decode are the emulation's, which is off here: set emulation on"
            )
        off = Flag("FOURFOLD_EMULATION", "off", "asked for: vLLM's own kernels")
        return (off,) if options.emulation == "off" else ()
    why = "asked for" if options.emulation == "on" else "vLLM has no NVFP4 kernels for CPUs: plain torch computes"
    flags = [Flag("FOURFOLD_EMULATION", "on", f"{why}, slowly and to the hardware's rounding")]
    if options.activations is not None:
        flags.append(Flag("FOURFOLD_ACTIVATIONS", options.activations, "asked for"))
    if options.input_scale_rule is not None:
        flags.append(Flag("FOURFOLD_INPUT_SCALE", options.input_scale_rule, "asked for"))
    decode, decode_why = options.decode, "asked for"
    if decode is None:
        tokens = min(options.max_model_len or facts.max_positions, facts.max_positions)
        roomy = replace(budget, weight_bytes=facts.decoded_bytes).fits(tokens)
        decode = "once" if roomy else "lazy"
        decode_why = "decoded weights fit beside a full context" if roomy else "decoded weights would not fit"
    flags.append(Flag("FOURFOLD_DECODE", decode, decode_why))
    return tuple(flags)


def _dropped(machine: Machine) -> list[Flag]:
    if machine.name != "gb10":
        return []
    return [Flag(name, None, f"published, dropped: {why}") for name, why in _PUBLISHED_AND_DROPPED]


def describe(launch: Launch, options: VllmOptions, program: tuple[str, ...]) -> ServePlan:
    """The plan as it is printed; ``program`` is what comes before the flags."""
    reasons = [Reason(flag=_words(flag), why=flag.why) for flag in (*launch.variables, *launch.flags)]
    if options.extra:
        reasons.append(Reason(flag=shlex.join(options.extra), why="given as it stands, after all others"))
    if options.emulation != "on" and launch.machine.sm is not None and launch.machine.sm >= (12, 0):
        reasons.append(
            Reason(flag="MAX_JOBS=4", why="advice for the first start: FlashInfer's compilers can exhaust host memory")
        )
    several = options.nodes > 1
    return ServePlan(
        command=(*program, *launch.arguments),
        environment=launch.environment,
        reasons=tuple(reasons),
        context_tokens=next(int(f.value) for f in launch.flags if f.name == "--max-model-len" and f.value),
        docker=_docker(launch, options) if _runs_in_container(launch, options) else (),
        first_node=("ray", "start", "--head", "--port=6379") if several else (),
        other_nodes=("ray", "start", "--address=FIRST_MACHINE:6379") if several else (),
    )


def _runs_in_container(launch: Launch, options: VllmOptions) -> bool:
    """The maker's container has no Fourfold, so neither the emulation nor NVFP4 on CPUs; and no Ray."""
    return launch.machine.sm is not None and options.emulation != "on" and options.nodes == 1


def _docker(launch: Launch, options: VllmOptions) -> tuple[str, ...]:
    """The maker's container with the checkpoint mounted at /model."""
    variables = [word for name, value in launch.environment.items() for word in ("-e", f"{name}={value}")]
    return (
        "docker", "run", "-d", "--name", f"vllm-{launch.model_name}", "--gpus", "all", "--ipc=host",
        "--network", "host", *variables, "-v", f"{launch.facts.path.resolve()}:/model", "--entrypoint", "vllm",
        options.docker_image, "serve", "/model", *launch.arguments,
    )  # fmt: skip


def _words(flag: Flag) -> str:
    if flag.value is None:
        return flag.name
    glue = " " if flag.name.startswith("-") else "="
    return f"{flag.name}{glue}{shlex.quote(flag.value)}"
