"""The demo model quantized once for all integration tests, with the command a newcomer types."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

#: Few tokens: enough to reach most experts, and to leave some without, in a fraction of the default's time.
CALIBRATION = ("--samples", "16", "--sequence-length", "128", "--batch-size", "8")


class Run(NamedTuple):
    """One run's checkpoint and the document it printed."""

    output: Path
    result: dict


@pytest.fixture(scope="session")
def stages(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("stages")


@pytest.fixture(scope="session")
def modelopt_run(tmp_path_factory, cli_json, stages) -> Run:
    output = tmp_path_factory.mktemp("modelopt") / "out"
    return Run(output, cli_json("quantize", "demo", "--output", output, "--stages", stages, *CALIBRATION))


@pytest.fixture(scope="session")
def llmcompressor_run(tmp_path_factory, cli_json, stages) -> Run:
    output = tmp_path_factory.mktemp("llmcompressor") / "out"
    arguments = ("--quantizer", "llmcompressor", "--layout", "compressed-tensors", "--unfuser", "reference")
    return Run(output, cli_json("quantize", "demo", "--output", output, "--stages", stages, *arguments, *CALIBRATION))
