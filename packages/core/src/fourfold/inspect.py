"""What a model holds, and what each choice of targets would make of it; reads headers only."""

from __future__ import annotations

from fourfold.checkpoint.index import TensorFolder
from fourfold.config import TARGET_PRESETS, Config, Recipe
from fourfold.models.gemma4 import read_gemma4
from fourfold.models.resolve import resolve_model
from fourfold.plan import projected_bytes
from fourfold.targets import resolve_targets


class TargetChoice(Config):
    """One preset of targets: how many modules, which share of all parameters, how many bytes it leaves."""

    targets: str
    num_modules: int
    quantized_share: float
    bytes: int
    factor: float


class ModelFacts(Config):
    """What ``fourfold inspect --json`` prints. Bytes are of tensors, headers not counted."""

    model: str
    num_parameters: int
    bytes: int
    num_layers: int
    num_experts: int
    experts_per_token: int
    fused_expert_share: float
    choices: tuple[TargetChoice, ...]


def inspect_model(name: str) -> ModelFacts:
    """Facts of an unquantized Gemma 4 MoE; :class:`fourfold.errors.ModelError` says what it is otherwise."""
    source = TensorFolder(resolve_model(name))
    gemma = read_gemma4(source)
    before = sum(entry.nbytes for entry in source)
    choices = []
    for preset in TARGET_PRESETS:
        targets = resolve_targets(gemma, Recipe.parse({"targets": preset}, where="recipe"))
        after = projected_bytes(source, targets)
        choices.append(
            TargetChoice(
                targets=preset,
                num_modules=len(targets),
                quantized_share=sum(m.numel for m in targets) / gemma.num_parameters,
                bytes=after,
                factor=before / after,
            )
        )
    return ModelFacts(
        model=name,
        num_parameters=gemma.num_parameters,
        bytes=before,
        num_layers=gemma.num_layers,
        num_experts=gemma.num_experts,
        experts_per_token=gemma.experts_per_token,
        fused_expert_share=gemma.fused_expert_share,
        choices=tuple(choices),
    )
