"""``fourfold sensitivity``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def sensitivity(
    model: Annotated[str, typer.Argument(help="'demo', a folder, a hub id; or a checkpoint, with --source.")],
    source: Annotated[str | None, typer.Option(help="The unquantized model a checkpoint was made from.")] = None,
    output: Annotated[Path | None, typer.Option(help="Write the report here as JSON.")] = None,
    divergence: Annotated[
        str, typer.Option(help="KL of the model's answers: none, roles, or groups (each layer's roles too).")
    ] = "roles",
    scheme: Annotated[str | None, typer.Option(help="W4A4 or W4A16; a checkpoint's own by default.")] = None,
    calibration: Annotated[
        str | None, typer.Option(help="cnn_dailymail, demo, or a .jsonl, .parquet or .txt file.")
    ] = None,
    field: Annotated[str | None, typer.Option(help="Field of the calibration texts.")] = None,
    chat_template: Annotated[bool, typer.Option(help="Render calibration texts as a user's turn.")] = False,
    samples: Annotated[int | None, typer.Option(help="Calibration rows.")] = None,
    sequence_length: Annotated[int | None, typer.Option(help="Tokens of a calibration row.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Calibration rows at a time.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the calibration rows.")] = 0,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16: what layers are computed in.")] = "float32",
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
) -> int:
    """Measure what NVFP4 costs by layer and role: weights, outputs, the residual stream, the model's answers."""
    from fourfold.cli.console import print_json, print_table, progress_bar
    from fourfold.sensitivity import SensitivityConfig, default_rows, measure_sensitivity, sensitivity_tables

    given = {
        "source": calibration, "field": field, "chat_template": chat_template or None, "samples": samples,
        "sequence_length": sequence_length, "batch_size": batch_size, "seed": seed,
    }  # fmt: skip
    config = SensitivityConfig.parse(
        {
            "model": model,
            "source": source,
            "scheme": scheme,
            "calibration": default_rows(source or model)
            | {key: value for key, value in given.items() if value is not None},
            "divergence": divergence,
            "dtype": dtype,
            "device": device,
        },
        where="",
    )
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
