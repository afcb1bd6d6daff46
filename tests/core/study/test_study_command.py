"""Comparing cells of different quantizers, and the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from typer.testing import CliRunner

from fourfold.cli.app import app
from fourfold.progress import NoProgress
from fourfold.study import Cell, plan_study
from fourfold.study.pairs import compare_pairs

from .conftest import BOTH, CELLS, Notes, read


def test_pairs_are_of_different_quantizers_and_one_stands_for_its_layouts(
    copy: Path, model: Path, registry, make_study
):
    """The second quantizer is the first under another name, so that all of it must be equal."""
    first = plan_study(make_study(BOTH, model=model), registry).cells
    results = {cell.name: cell for cell in read(copy).cells}
    twins = []
    for cell in first:
        name = f"twin-{cell.name}"
        shutil.copytree(copy / "checkpoints" / cell.name, copy / "checkpoints" / name)
        quantizer = cell.config.quantizer.model_copy(update={"name": "twin"})
        twins.append(Cell(name, cell.config.model_copy(update={"quantizer": quantizer})))
        results[name] = results[cell.name].model_copy(update={"name": name})
    cells = [*first, *twins]
    (pair,) = compare_pairs(cells, results, copy, model, known=(), progress=NoProgress())
    assert (pair.a, pair.b) == (CELLS[0], f"twin-{CELLS[0]}")
    assert pair.stands_for == (CELLS[1], f"twin-{CELLS[1]}")
    assert pair.packed_weights.equal == pair.packed_weights.tensors > 0
    assert pair.block_scales.differing_elements == 0
    assert (pair.differing, pair.causes) == (0, {})
    # what is known is not compared again, while both manifests are the same
    notes = Notes()
    marked = pair.model_copy(update={"explained": 99})
    (kept,) = compare_pairs(cells, results, copy, model, known=(marked,), progress=notes)
    assert kept.explained == 99
    changed = {**results, CELLS[0]: results[CELLS[0]].model_copy(update={"manifest_sha256": "0" * 64})}
    (anew,) = compare_pairs(cells, changed, copy, model, known=(marked,), progress=notes)
    assert anew.explained == 0


def test_the_command_prints_one_table_or_json_and_its_exit_code(copy: Path, model: Path, tmp_path: Path):
    path = tmp_path / "study.toml"
    path.write_text(f'name = "a-study"\nsummary = "for a test"\nmodel = "{model}"\n{BOTH}')
    run = CliRunner().invoke(app, ["study", "run", str(path), "--output", str(copy), "--json"])
    assert run.exit_code == 0, run.output
    assert json.loads(run.stdout)["ok"] is True
    table = CliRunner().invoke(app, ["study", "run", str(path), "--output", str(copy)])
    assert table.exit_code == 0
    assert CELLS[0] in table.stdout
    results = read(copy)
    broken = results.cells[0].model_copy(update={"verified": False, "findings": 3})
    results.model_copy(update={"cells": (broken, *results.cells[1:])}).write(copy)
    wrong = CliRunner().invoke(app, ["study", "run", str(path), "--output", str(copy)])
    assert wrong.exit_code == 1
    assert "no: 3 findings" in wrong.stdout


def test_needs_of_a_cluster_are_refused_without_one(tmp_path: Path):
    arguments = ["study", "run", "none.toml", "--output", str(tmp_path / "out"), "--needs", "quantize.gpus=8"]
    run = CliRunner().invoke(app, arguments)
    assert run.exit_code == 2
    assert "--needs: says what jobs take of a cluster; give its address by --ray, or leave --needs out" in run.stderr


def test_validate_says_all_files_faults_at_once(tmp_path: Path):
    good, bad, worse = (tmp_path / f"{name}.toml" for name in ("good", "bad", "worse"))
    matrix = '[matrix]\nquantizers = ["modelopt"]\nlayouts = ["modelopt"]\n'
    good.write_text(f'name = "good"\nsummary = "s"\nmodel = "no/model"\n{matrix}')
    bad.write_text(good.read_text().replace("modelopt", "modlopt"))
    worse.write_text("colour = 1\n")
    run = CliRunner().invoke(app, ["study", "validate", str(good), str(bad), str(worse)])
    assert run.exit_code == 2
    assert "good.toml: 1 cells" in run.stdout
    assert "unknown quantizer 'modlopt'" in run.stderr
    assert "worse.toml: " in run.stderr
    assert CliRunner().invoke(app, ["study", "validate", str(good)]).exit_code == 0
