"""From sums to the report's rows."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING

from fourfold.config import Scheme
from fourfold.models.gemma4 import Gemma4Moe, ModuleKind
from fourfold.sensitivity.report import ALL_ROLES, GroupRow, LinearRow, RoleRow, SensitivityReport
from fourfold.sensitivity.weights import CheckpointWeights, WeightSource
from fourfold.versions import package_versions

if TYPE_CHECKING:
    from fourfold.calibration import TokenSet
    from fourfold.sensitivity.answers import Answer
    from fourfold.sensitivity.findings import Choice, LayerFinding, LinearFinding
    from fourfold.sensitivity.spec import SensitivityConfig

_ORDER = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def build_report(
    config: SensitivityConfig,
    scheme: Scheme,
    weights: WeightSource,
    gemma: Gemma4Moe,
    tokens: TokenSet,
    layers: list[LayerFinding],
    answers: dict[Choice, Answer],
) -> SensitivityReport:
    """The finished report."""
    from_checkpoint = isinstance(weights, CheckpointWeights)
    return SensitivityReport(
        model=config.source or config.model if from_checkpoint else config.model,
        checkpoint=config.model if from_checkpoint else None,
        checkpoint_manifest_sha256=weights.manifest_sha256 if isinstance(weights, CheckpointWeights) else None,
        weights="checkpoint" if from_checkpoint else "codec",
        scheme=scheme,
        tokens=tokens.record,
        dtype=config.dtype,
        device=config.device,
        packages=package_versions(),
        linears=tuple(row for layer in layers for row in _linear_rows(layer)),
        groups=tuple(row for layer in layers for row in _group_rows(layer, answers)),
        roles=tuple(_role_rows(layers, answers)),
        expert_token_counts=_expert_token_counts(gemma, layers),
    )


def _linear_rows(layer: LayerFinding) -> Iterable[LinearRow]:
    found: dict[tuple[ModuleKind, str], list[LinearFinding]] = defaultdict(list)
    for linear in layer.linears:
        found[linear.module.kind, linear.module.projection].append(linear)
    for kind, projection in sorted(found, key=lambda key: (list(ModuleKind).index(key[0]), _ORDER.index(key[1]))):
        linears = found[kind, projection]
        reached = [linear for linear in linears if linear.norm > 0]
        with_scale = [linear for linear in reached if linear.error_w4a4 is not None]
        worst = max(with_scale, key=lambda linear: _error(linear.error_w4a4 or 0.0, linear.norm), default=None)
        norm = sum(linear.norm for linear in reached)
        yield LinearRow(
            layer=layer.index,
            kind=kind,
            projection=projection,
            modules=len(linears),
            tokens=sum(linear.tokens for linear in linears),
            unreached=sum(linear.tokens == 0 for linear in linears),
            weight_error=_weight_error(linears),
            output_error_w4a16=_error(sum(linear.error_w4a16 for linear in reached), norm) if norm else None,
            output_error_w4a4=_error(sum(linear.error_w4a4 or 0.0 for linear in reached), norm)
            if norm and len(with_scale) == len(reached)
            else None,
            worst_module=worst.module.name if worst else None,
            worst_error=_error(worst.error_w4a4 or 0.0, worst.norm) if worst else None,
        )


def _group_rows(layer: LayerFinding, answers: dict[Choice, Answer]) -> Iterable[GroupRow]:
    for kind, stream_error in layer.stream_error.items():
        linears = [linear for linear in layer.linears if linear.module.kind is kind]
        answer = answers.get((layer.index, kind))
        yield GroupRow(
            layer=layer.index,
            kind=kind,
            modules=len(linears),
            weight_error=_weight_error(linears),
            stream_error=stream_error,
            kl=answer.kl if answer else None,
            kl_standard_error=answer.standard_error if answer else None,
            top1_agreement=answer.top1_agreement if answer else None,
        )


def _role_rows(layers: list[LayerFinding], answers: dict[Choice, Answer]) -> Iterable[RoleRow]:
    for kind in (*ModuleKind, None):
        answer = answers.get((None, kind))
        if answer is not None:
            yield RoleRow(
                role=ALL_ROLES if kind is None else kind,
                modules=sum(kind in (None, linear.module.kind) for layer in layers for linear in layer.linears),
                kl=answer.kl,
                kl_standard_error=answer.standard_error,
                top1_agreement=answer.top1_agreement,
                tokens=answer.tokens,
            )


def _expert_token_counts(gemma: Gemma4Moe, layers: list[LayerFinding]) -> dict[str, tuple[int, ...]]:
    """Of every layer whose experts are all measured: a token counts once an expert it was routed to."""
    counts = {}
    for layer in layers:
        tokens = {
            linear.module.expert: linear.tokens
            for linear in layer.linears
            if linear.module.expert is not None and linear.module.projection == "gate_proj"
        }
        if len(tokens) == gemma.num_experts:
            counts[gemma.experts_module(layer.index)] = tuple(tokens[expert] for expert in range(gemma.num_experts))
    return counts


def _weight_error(linears: list[LinearFinding]) -> float:
    return _error(sum(linear.weight_error for linear in linears), sum(linear.weight_norm for linear in linears))


def _error(square_error: float, square_norm: float) -> float:
    return math.sqrt(square_error / square_norm) if square_norm else 0.0
