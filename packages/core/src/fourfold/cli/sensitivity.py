"""``fourfold sensitivity``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fourfold.cli.options import (
    BatchSize,
    CalibrationField,
    CalibrationSource,
    ChatTemplate,
    Samples,
    SequenceLength,
    given,
)


def sensitivity(
    model: Annotated[str, typer.Argument(help="'demo', a folder, a hub id; or a checkpoint, with --source.")],
    source: Annotated[str | None, typer.Option(help="The unquantized model a checkpoint was made from.")] = None,
    output: Annotated[Path | None, typer.Option(help="Write the report here as JSON.")] = None,
    divergence: Annotated[
        str, typer.Option(help="KL of the model's answers: none, roles, or groups (each layer's roles too).")
    ] = "roles",
    scheme: Annotated[str | None, typer.Option(help="W4A4 or W4A16; a checkpoint's own by default.")] = None,
    calibration: CalibrationSource = None,
    field: CalibrationField = None,
    chat_template: ChatTemplate = False,
    samples: Samples = None,
    sequence_length: SequenceLength = None,
    batch_size: BatchSize = None,
    seed: Annotated[int, typer.Option(help="Seed of the calibration rows.")] = 0,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16: what layers are computed in.")] = "float32",
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
) -> int:
    """Measure what NVFP4 costs by layer and role: weights, outputs, the residual stream, the model's answers."""
    from fourfold.checkpoint.atomic import require_writable
    from fourfold.cli.console import print_json, print_table, progress_bar
    from fourfold.sensitivity import SensitivityConfig, default_rows, measure_sensitivity, sensitivity_tables

    rows = given(
        source=calibration, field=field, chat_template=chat_template or None, samples=samples,
        sequence_length=sequence_length, batch_size=batch_size, seed=seed,
    )  # fmt: skip
    config = SensitivityConfig.parse(
        {
            "model": model,
            "source": source,
            "scheme": scheme,
            "calibration": default_rows(source or model) | rows,
            "divergence": divergence,
            "dtype": dtype,
            "device": device,
        },
        where="",
    )
    if output is not None:
        require_writable(output)
    with progress_bar(quiet=json) as progress:
        report = measure_sensitivity(config, progress)
    if output is not None:
        report.write(output)
    if json:
        print_json(report)
        return 0
    for table in sensitivity_tables(report):
        print_table(table.title, table.header, table.rows)
    return 0
