"""A plan as tables of text."""

from __future__ import annotations

from fourfold.page import NONE, Table
from fourfold.sizing.sizing import PlanReport, RecipeRow


def plan_tables(report: PlanReport) -> tuple[Table, ...]:
    """One table of recipes, the mix last where there is one."""
    gpu = report.gpu
    where = f" on {gpu.summary} ({gpu.memory_bytes / 1e9:.0f} GB, {gpu.bandwidth / 1e9:,.0f} GB/s)" if gpu else ""
    header = ("recipe", "scheme", "checkpoint", "fits", "longest sequence", f"of {report.config.context:,}", "tokens/s",
              "GB a token", "predicted error")  # fmt: skip
    rows = [_row(row) for row in report.recipes]
    if report.mix is not None:
        rows.append(_row(report.mix.row))
    return (Table(f"{report.config.model}{where}, predicted", header, tuple(rows)),)


def plan_notes(report: PlanReport) -> tuple[str, ...]:
    """What stands under the table."""
    notes = []
    if report.room is not None:
        notes.append(f"room for weights: {_size(max(0, report.room))}")
    if report.error_is is not None:
        notes.append(f"predicted error: {report.error_is}, summed over what is quantized")
    if report.mix is None:
        notes.append(f"no mix: {report.mix_absent}")
    elif report.mix.exclude:
        options = " ".join(f"--exclude '{pattern}'" for pattern in report.mix.exclude)
        notes.append(f"the mix: fourfold quantize {report.config.model} {options} --output FOLDER")
    else:
        notes.append("the mix: everything is in NVFP4, as nothing less fits")
    return tuple(notes)


def _row(row: RecipeRow) -> tuple[str, ...]:
    return (
        row.recipe,
        NONE if row.scheme is None else str(row.scheme),
        _size(row.bytes),
        {None: NONE, True: "yes", False: "no"}[row.fits],
        NONE if row.kv_tokens is None else f"{row.kv_tokens:,}",
        NONE if row.sequences is None else f"{row.sequences:,} x",
        NONE if row.tokens_per_second is None else f"{row.tokens_per_second:.1f}",
        f"{row.bytes_per_token / 1e9:.3g}",
        NONE if row.error is None else f"{row.error:.4g}",
    )


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 10**8 else f"{count / 1e6:.2f} MB"
