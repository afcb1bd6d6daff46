"""What one quantization run will do, checked in full before any of it is done."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from fourfold.calibration.spec import CalibrationSpec
from fourfold.checkpoint.atomic import require_free, require_space
from fourfold.checkpoint.index import TensorFolder
from fourfold.config import Config, RareExpertRule, Recipe
from fourfold.errors import ConfigError, DeviceError
from fourfold.interfaces.quantizer import QuantizerOptions
from fourfold.manifest import Component, shows_all_experts
from fourfold.models.gemma4 import Gemma4Moe, LinearModule, read_gemma4
from fourfold.models.resolve import resolve_model
from fourfold.plugins import QuantizerEntry, Registry, Role
from fourfold.targets import resolve_targets
from fourfold.verify.expected import require_whole

#: Bytes a quantized weight takes: half a byte a code, one byte a block of 16.
BYTES_PER_WEIGHT = 0.5 + 1 / 16


class QuantizeConfig(Config):
    """One run, as the command line or a study file says it. ``unfuser`` None means the quantizer's first choice."""

    model: str
    quantizer: Component = Field(default_factory=lambda: Component(name="modelopt"))
    unfuser: Component | None = None
    layout: str = "modelopt"
    recipe: Recipe = Recipe()
    calibration: CalibrationSpec = CalibrationSpec()
    device: str = "cpu"
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class QuantizePlan:
    """A checked run: names resolved, options parsed, targets chosen, the source's facts at hand."""

    config: QuantizeConfig
    model_path: Path
    source: TensorFolder
    gemma: Gemma4Moe
    targets: tuple[LinearModule, ...]
    quantizer: QuantizerEntry
    quantizer_options: QuantizerOptions
    unfuser: Component
    needs_tokens: bool

    @property
    def bytes_before(self) -> int:
        """Bytes of the source's tensors."""
        return sum(entry.nbytes for entry in self.source)

    @property
    def projected_bytes(self) -> int:
        """Bytes of the checkpoint's tensors, to a few per scale."""
        return projected_bytes(self.source, self.targets)


def projected_bytes(source: TensorFolder, targets: tuple[LinearModule, ...]) -> int:
    """Tensor bytes of ``source`` with ``targets`` in NVFP4, the scales of both schemes counted at 8 bytes a module."""
    weights = sum(module.numel for module in targets)
    before = sum(entry.nbytes for entry in source)
    stored = {module.tensor: source.tensors[module.tensor] for module in targets}
    element_bytes = {name: entry.nbytes // entry.numel for name, entry in stored.items()}
    removed = sum(module.numel * element_bytes[module.tensor] for module in targets)
    return int(before - removed + weights * BYTES_PER_WEIGHT + 8 * len(targets))


def plan_quantize(config: QuantizeConfig, registry: Registry) -> QuantizePlan:
    """Check ``config`` against what is installed and against the model; every refusal comes from here, or before
    the stage's own work begins.

    Raises a :class:`fourfold.errors.FourfoldError` that names the option and what would be right.
    """
    registry.get(Role.EXPORTER, config.layout)
    entry = registry.quantizer(config.quantizer.name)
    options = plan_quantizer(config, entry)
    unfuser = plan_unfuser(config, entry, registry)
    options.check_unfuser(unfuser.name)
    if config.recipe.rare_experts is RareExpertRule.ERROR and shows_all_experts(config.quantizer, unfuser):
        raise ConfigError(
            "recipe.rare_experts: error stops for an expert that saw too few tokens, and under calibrate_all_experts "
            "every expert sees every token, so it would never; leave one of the two out"
        )
    require_device(config.device)
    model_path = resolve_model(config.model)
    source = TensorFolder(model_path)
    gemma = read_gemma4(source)
    require_whole(source, gemma)
    targets = resolve_targets(gemma, config.recipe)
    needs_tokens = options.reads_tokens(config.recipe)
    if needs_tokens:
        _check_calibration(config.calibration, source)
    return QuantizePlan(
        config=config,
        model_path=model_path,
        source=source,
        gemma=gemma,
        targets=targets,
        quantizer=entry,
        quantizer_options=options,
        unfuser=unfuser,
        needs_tokens=needs_tokens,
    )


def plan_quantizer(config: QuantizeConfig, entry: QuantizerEntry) -> QuantizerOptions:
    """The quantizer's options, parsed, and its own refusals heard; needs neither model nor toolchain."""
    options = entry.options.parse(config.quantizer.options, where="quantizer")
    assert isinstance(options, QuantizerOptions)  # the entry's contract, checked by the conformance suite
    options.check(config.recipe, config.device)
    return options


def plan_unfuser(config: QuantizeConfig, entry: QuantizerEntry, registry: Registry) -> Component:
    """The unfuser with its options in full, if the quantizer can work behind it; by default its first choice."""
    unfuser = config.unfuser or Component(name=entry.unfusers[0])
    unfuser_entry = registry.get(Role.UNFUSER, unfuser.name)
    if unfuser.name not in entry.unfusers:
        raise ConfigError(
            f"unfuser {unfuser.name!r} does not work with quantizer {entry.name!r}; "
            f"these do: {', '.join(entry.unfusers)}"
        )
    parsed = unfuser_entry.options.parse(unfuser.options, where="unfuser")
    return Component(name=unfuser.name, options=parsed.model_dump(mode="json"))


def _check_calibration(spec: CalibrationSpec, source: TensorFolder) -> None:
    text: Any = source.config.get("text_config", source.config)
    limit = text.get("max_position_embeddings")
    if isinstance(limit, int) and spec.sequence_length > limit:
        raise ConfigError(
            f"calibration.sequence_length: {spec.sequence_length} is longer than the model's {limit} positions"
        )


def require_device(device: str) -> None:
    """Raise :class:`DeviceError` unless ``device`` (``cpu``, ``cuda``, ``cuda:N``, ``auto``) is here."""
    kind, _, index = device.partition(":")
    if device == "cpu":
        return
    if device != "auto" and (kind != "cuda" or (index and not index.isdigit())):
        raise DeviceError(f"unknown device {device!r}; known: cpu, cuda, cuda:N, auto")
    import torch

    count = torch.cuda.device_count()
    if count == 0:
        raise DeviceError(f"device {device!r}: no CUDA GPU is visible here; use --device cpu")
    if index and int(index) >= count:
        raise DeviceError(f"device {device!r}: this machine has cuda:0 to cuda:{count - 1}")


def require_output(plan: QuantizePlan, output: Path) -> None:
    """Raise :class:`fourfold.errors.OutputError` for an output folder that is taken, or a disk too small.

    Artifact and checkpoint stand side by side until the end, so twice the projected size is needed.
    """
    require_free(output)
    require_space(output, 2 * plan.projected_bytes)


def require_apart(output: Path, stages: Path) -> None:
    """Raise :class:`ConfigError` for stages that would lie in the output folder, which appears whole and holds no more.

    An output among the stages is in nobody's way.
    """
    if stages.resolve().is_relative_to(output.resolve()):
        raise ConfigError(
            f"{stages}: finished stages cannot be kept in the output folder {output}; give --stages a folder beside it"
        )


def default_calibration(model: str) -> dict[str, object]:
    """What calibration data a model gets when none is named: the demo its own, at its size; others the published."""
    if model == "demo":
        return {"source": "demo", "samples": 64, "sequence_length": 256, "batch_size": 16}
    return {}
