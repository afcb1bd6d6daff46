"""Options that several commands share, with one wording each."""

from __future__ import annotations

from typing import Annotated, Any

import typer

CalibrationSource = Annotated[
    str | None,
    typer.Option("--calibration", help="cnn_dailymail, demo, demo-vision, or a .jsonl, .parquet or .txt file."),
]
CalibrationField = Annotated[str | None, typer.Option("--field", help="Field of the calibration texts.")]
ChatTemplate = Annotated[bool, typer.Option("--chat-template", help="Render calibration texts as a user's turn.")]
Samples = Annotated[int | None, typer.Option("--samples", help="Calibration rows.")]
SequenceLength = Annotated[int | None, typer.Option("--sequence-length", help="Tokens of a calibration row.")]
BatchSize = Annotated[int | None, typer.Option("--batch-size", help="Calibration rows at a time.")]

#: Said when ``--output`` was the folder that the command was given in, which is replaced by the finished one.
MADE_ANEW = "the folder you are in was made anew; cd . enters the new one"


def given(**options: Any) -> dict[str, Any]:
    """Those options that were given: a default of the config below stands for each other one."""
    return {name: value for name, value in options.items() if value is not None}
