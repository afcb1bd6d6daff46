"""``python -m fourfold.conformance``: exit codes and words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fourfold.conformance.__main__ import main


@pytest.fixture(autouse=True)
def faulty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "faulty"))


def test_an_unknown_name_lists_the_known_ones(capsys: pytest.CaptureFixture[str]):
    assert main(["fourfold_modelopt.hooks", "quantizer", "modlopt"]) == 2
    assert "unknown quantizer 'modlopt'; known: modelopt, reference" in capsys.readouterr().err


def test_a_broken_promise_is_exit_code_one(capsys: pytest.CaptureFixture[str]):
    assert main(["faulty_hooks", "unfuser", "takesstrangers"]) == 1
    outcomes = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert [o["check"] for o in outcomes if o["verdict"] == "broken"] == ["strangers_are_refused"]
