"""Calibration on chats with pictures, from the command line: two implementations, one checkpoint."""

from __future__ import annotations

import json

PICTURES = ("quantize", "demo", "--unfuser", "reference", "--calibration", "demo-vision", "--samples", "12")


def test_the_engine_and_modelopt_write_the_same_bytes(cli, tmp_path):
    outputs = {name: tmp_path / name for name in ("reference", "modelopt")}
    for name, output in outputs.items():
        run = cli(*PICTURES, "--quantizer", name, "--stages", tmp_path / "stages", "--output", output)
        assert run.returncode == 0, run.stdout + run.stderr
    same = cli("compare", *outputs.values(), "--level", "bytes", "--json")
    assert same.returncode == 0
    tensors = json.loads(same.stdout)["tensors"]
    assert tensors["equal_bytes"] == tensors["total"] > 2344


def test_an_algorithm_that_would_pass_pictures_by_is_refused(cli, tmp_path):
    run = cli(*PICTURES, "--quantizer", "llmcompressor", "--algorithm", "gptq", "--output", tmp_path / "out")
    assert (run.returncode, run.stdout) == (2, "")
    assert (
        "gptq would pass by the pictures of calibration rows; use --quantizer reference, or calibrate on text"
        in run.stderr
    )
    assert not (tmp_path / "out").exists()
