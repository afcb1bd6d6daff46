"""A sensitivity report as tables of text."""

from __future__ import annotations

from fourfold.page import NONE, Table
from fourfold.sensitivity.report import SensitivityReport

_LINEARS = ("layer", "role", "projection", "linears", "inputs", "weight error", "W4A16 error", "W4A4 error", "worst")
_GROUPS = ("layer", "role", "linears", "weight error", "change of the stream", "KL, nats a token", "same top token")
_ROLES = ("in NVFP4", "linears", "KL, nats a token", "same top token", "positions")


def sensitivity_tables(report: SensitivityReport) -> tuple[Table, ...]:
    """Linears by layer, groups, roles; tables without rows are left out."""
    linears = tuple(
        (
            str(row.layer),
            str(row.kind),
            row.projection,
            f"{row.modules:,}" if not row.unreached else f"{row.modules:,}, {row.unreached} without a token",
            f"{row.tokens:,}",
            _number(row.weight_error),
            _number(row.output_error_w4a16),
            _number(row.output_error_w4a4),
            _number(row.worst_error),
        )
        for row in report.linears
    )
    groups = tuple(
        (
            str(row.layer),
            str(row.kind),
            f"{row.modules:,}",
            _number(row.weight_error),
            _number(row.stream_error),
            divergence(row.kl, row.kl_standard_error),
            _share(row.top1_agreement),
        )
        for row in report.groups
    )
    roles = tuple(
        (
            row.role,
            f"{row.modules:,}",
            divergence(row.kl, row.kl_standard_error),
            _share(row.top1_agreement),
            f"{row.tokens:,}",
        )
        for row in report.roles
    )
    tables = (
        Table("linears: relative errors of weights and outputs", _LINEARS, linears),
        Table(f"one layer's role in {report.scheme} at a time", _GROUPS, groups),
        Table(f"a role in {report.scheme}, in all layers", _ROLES, roles),
    )
    return tuple(table for table in tables if table.rows)


def divergence(kl: float | None, standard_error: float | None) -> str:
    """A KL divergence with the standard error of its mean."""
    if kl is None:
        return NONE
    return f"{kl:.3g}" if standard_error is None else f"{kl:.3g} ± {standard_error:.1g}"


def _number(value: float | None) -> str:
    return NONE if value is None else f"{value:.4f}"


def _share(value: float | None) -> str:
    return NONE if value is None else f"{100 * value:.2f} %"
