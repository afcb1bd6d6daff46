"""What is said of experts that calibration did not reach."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fourfold.cli.app import app


@pytest.mark.parametrize("shown", [False, True], ids=["routed", "all-experts"])
def test_experts_without_tokens_are_told_from_those_that_were_shown_all(shown: bool, tmp_path: Path) -> None:
    command = [
        "quantize", "demo", "--quantizer", "modelopt", "--unfuser", "reference", "--output", str(tmp_path / "out"),
        "--samples", "4", "--sequence-length", "32", "--stages", str(tmp_path / "stages"),
    ]  # fmt: skip
    command += ["--unfuser-option", "calibrate_all_experts=true"] if shown else []
    said = CliRunner().invoke(app, command)
    assert said.exit_code == 0, said.output
    told = "experts were routed no calibration token (all experts were shown every token)"
    assert (told in said.output) is shown
    assert ("saw no calibration token" in said.output) is not shown
    again = CliRunner().invoke(app, [*command[:7], str(tmp_path / "again"), *command[8:], "--json"])
    result = json.loads(again.stdout)
    assert result["unrouted_experts"]
    assert result["uncalibrated_experts"] == ([] if shown else result["unrouted_experts"])
