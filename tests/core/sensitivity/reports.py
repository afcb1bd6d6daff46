"""A sensitivity report of the demo whose figures are made up but differ everywhere, for what only reads reports."""

from __future__ import annotations

from fourfold.calibration import CalibrationSpec, TokenSetRecord
from fourfold.config import Scheme
from fourfold.models.gemma4 import ModuleKind
from fourfold.sensitivity import GroupRow, LinearRow, RoleRow, SensitivityReport

PROJECTIONS = {
    ModuleKind.EXPERT: ("gate_proj", "up_proj", "down_proj"),
    ModuleKind.ATTENTION: ("q_proj", "k_proj", "o_proj"),
    ModuleKind.DENSE_MLP: ("gate_proj", "up_proj", "down_proj"),
}


def demo_report() -> SensitivityReport:
    """Six layers, every group with an error of its own."""
    kinds, layers = list(ModuleKind), range(6)
    value = {(layer, kind): 0.01 * (1 + (7 * layer + 5 * kinds.index(kind)) % 18) for layer in layers for kind in kinds}
    return SensitivityReport(
        model="demo",
        checkpoint=None,
        weights="codec",
        scheme=Scheme.W4A4,
        tokens=TokenSetRecord(
            spec=CalibrationSpec(source="demo", samples=2, sequence_length=64),
            num_texts=3, num_tokens=128, texts_sha256="a" * 64, tokenizer_sha256="b" * 64, tokens_sha256="c" * 64,
        ),
        dtype="float32",
        device="cpu",
        packages={"torch": "2.13.0"},
        linears=tuple(
            LinearRow(
                layer=layer, kind=kind, projection=projection, modules=1, tokens=128, unreached=0, weight_error=0.095,
                output_error_w4a16=0.08, output_error_w4a4=0.08 + value[layer, kind] / 10, worst_module=None,
                worst_error=None,
            )
            for layer in layers for kind in kinds for projection in PROJECTIONS[kind]
        ),
        groups=tuple(
            GroupRow(
                layer=layer, kind=kind, modules=3, weight_error=0.095, stream_error=value[layer, kind] / 2,
                kl=value[layer, kind], kl_standard_error=0.001, top1_agreement=0.95,
            )
            for layer in layers for kind in kinds
        ),
        roles=tuple(
            RoleRow(role=role, modules=10, kl=kl, kl_standard_error=0.01, top1_agreement=0.9, tokens=128)
            for role, kl in (("expert", 0.2), ("attention", 0.4), ("dense-mlp", 0.1), ("all", 0.5))
        ),
        expert_token_counts={
            f"model.language_model.layers.{layer}.experts": tuple((layer + expert) % 9 for expert in range(128))
            for layer in layers
        },
    )  # fmt: skip
