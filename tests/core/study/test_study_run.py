"""Running studies: what is kept, what goes on, what ends, and what is written down."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

import fourfold_llmcompressor.hooks
import fourfold_modelopt.hooks
from fourfold.cli.app import app
from fourfold.errors import CheckpointError, ConfigError, OutputError
from fourfold.hookspecs import hookimpl
from fourfold.interfaces.exporter import Exporter
from fourfold.plugins import Entry, Registry, build_plugin_manager
from fourfold.progress import NoProgress
from fourfold.study import Cell, StudyResults, plan_study, run_study, study_tables
from fourfold.study.pairs import compare_pairs
from fourfold.study.run import LOCK_FILE

from .conftest import MakeStudy

BOTH = """
compare = true
[recipe]
scheme = "W4A16"
[matrix]
quantizers = ["reference"]
layouts = ["modelopt", "compressed-tensors"]
"""
CELLS = ("reference-max.default.modelopt", "reference-max.default.compressed-tensors")


class Notes(NoProgress):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)


class Failing(Exporter):
    error: Exception | type[BaseException] = CheckpointError("this layout has no words for it")

    def export(self, artifact, destination, progress) -> None:
        raise self.error


class Crashing(Failing):
    error = RuntimeError("a plugin's own fault")


class Interrupted(Failing):
    error = KeyboardInterrupt


class Faulty:
    @staticmethod
    @hookimpl
    def fourfold_register_exporters() -> list[Entry]:
        return [
            Entry(name=kind.__name__.lower(), summary="a test's", implementation=f"{__name__}:{kind.__name__}")
            for kind in (Failing, Crashing, Interrupted)
        ]


@pytest.fixture
def faulty() -> Registry:
    registry = Registry(build_plugin_manager([fourfold_modelopt.hooks, fourfold_llmcompressor.hooks, Faulty]))
    load = registry.load

    def local(role, name):
        kinds = {kind.__name__.lower(): kind for kind in (Failing, Crashing, Interrupted)}
        return kinds.get(name) or load(role, name)

    registry.load = local  # type: ignore[method-assign]
    return registry


@pytest.fixture(scope="session")
def finished(model: Path, registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study's output, run to the end."""
    import tomllib

    from fourfold.study.spec import parse_study

    head = f'name = "a-study"\nsummary = "for a test"\nmodel = "{model}"\n'
    output = tmp_path_factory.mktemp("finished") / "output"
    run_study(plan_study(parse_study(tomllib.loads(head + BOTH)), registry), registry, output, NoProgress())
    return output


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "copy"))


@pytest.fixture
def again(model: Path, registry: Registry, make_study: MakeStudy) -> Callable[..., tuple[StudyResults, list[str]]]:
    def run(output: Path, text: str = BOTH) -> tuple[StudyResults, list[str]]:
        notes = Notes()
        return run_study(plan_study(make_study(text, model=model), registry), registry, output, notes), notes.texts

    return run


def read(output: Path) -> StudyResults:
    return StudyResults.model_validate_json((output / "results.json").read_bytes())


def test_results_say_what_was_made_out_of_what(finished: Path, model: Path):
    results = read(finished)
    assert (results.schema_version, results.complete, results.ok) == (1, True, True)
    assert tuple(cell.name for cell in results.cells) == CELLS
    assert set(results.source_files) >= {"config.json", "model.safetensors", "tokenizer.json"}
    assert {"torch", "python", "fourfold"} <= results.packages.keys()
    for cell in results.cells:
        assert (cell.status, cell.verified, cell.findings, cell.equal_to_artifact) == ("done", True, 0, True)
        assert cell.checks is not None
        assert cell.checks > 1000
        folder = finished / str(cell.checkpoint)
        assert cell.bytes_after == sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        assert cell.packages is not None
        assert cell.packages["torch"] == results.packages["torch"]
        assert (finished / str(cell.artifact) / "manifest.json").is_file()
    assert results.pairs == ()  # one quantizer


def test_the_second_layout_reuses_the_quantize_stage(finished: Path):
    first, second = read(finished).cells
    assert [(stage.name, stage.reused) for stage in first.stages if stage.name == "quantize"] == [("quantize", False)]
    assert [(stage.name, stage.reused) for stage in second.stages if stage.name == "quantize"] == [("quantize", True)]
    assert first.artifact == second.artifact


def test_a_finished_study_runs_nothing(copy: Path, again):
    before = read(copy)
    results, notes = again(copy)
    assert results == before
    assert [note.rpartition(": ")[2] for note in notes] == ["complete, kept", "complete, kept"]


@pytest.mark.parametrize("fault", ["changed", "removed", "added", "manifest"])
def test_a_damaged_cell_is_run_again_and_the_other_kept(fault: str, copy: Path, again):
    folder = copy / "checkpoints" / CELLS[1]
    if fault == "changed":
        (folder / "tokenizer.json").write_text("{}")
    elif fault == "removed":
        (folder / "tokenizer.json").unlink()
    elif fault == "added":
        (folder / "extra.json").write_text("{}")
    else:
        (folder / "manifest.json").write_text("{}")
    results, notes = again(copy)
    assert results.ok
    assert notes[0].endswith(f"{CELLS[0]}: complete, kept")
    assert notes[1] == f"cell 2 of 2, {CELLS[1]}"
    assert not (folder / "extra.json").exists()


def test_a_changed_model_runs_every_cell_again(finished: Path, copy: Path, model: Path, tmp_path: Path, again):
    results = read(copy)
    stale = tuple(cell.model_copy(update={"identity": "0" * 64}) for cell in results.cells)
    results.model_copy(update={"cells": stale}).write(copy)
    again_results, notes = again(copy)
    assert not any("kept" in note for note in notes)
    assert [c.manifest_sha256 for c in again_results.cells] == [c.manifest_sha256 for c in results.cells]


def test_one_failure_is_recorded_and_the_others_go_on(faulty: Registry, model: Path, make_study, tmp_path: Path):
    text = '[recipe]\nscheme = "W4A16"\n[matrix]\nquantizers = ["reference"]\n'
    study = make_study(text + 'layouts = ["failing", "crashing", "modelopt"]\n', model=model)
    results = run_study(plan_study(study, faulty), faulty, tmp_path / "out", NoProgress())
    failing, crashing, done = results.cells
    assert (failing.status, failing.error_type) == ("failed", "CheckpointError")
    assert failing.error == "this layout has no words for it"
    assert (crashing.status, crashing.error_type) == ("failed", "RuntimeError")
    assert "Traceback" in str(crashing.error)
    assert (done.status, done.verified) == ("done", True)
    assert (results.complete, results.ok) == (True, False)
    assert read(tmp_path / "out") == results
    rows = study_tables(results)[0].rows
    assert rows[0][3] == "failed: CheckpointError: this layout has no words for it"
    assert rows[1][3] == "failed: RuntimeError: RuntimeError: a plugin's own fault"
    # the same call tries the failed ones again, and only those
    notes = Notes()
    run_study(plan_study(study, faulty), faulty, tmp_path / "out", notes)
    assert [note for note in notes.texts if note.endswith("kept")] == [f"cell 3 of 3, {done.name}: complete, kept"]


def test_an_interruption_ends_the_run_and_keeps_what_is_done(faulty: Registry, model: Path, make_study, tmp_path: Path):
    text = '[recipe]\nscheme = "W4A16"\n[matrix]\nquantizers = ["reference"]\n'
    study = make_study(text + 'layouts = ["modelopt", "interrupted", "failing"]\n', model=model)
    with pytest.raises(KeyboardInterrupt):
        run_study(plan_study(study, faulty), faulty, tmp_path / "out", NoProgress())
    results = read(tmp_path / "out")
    assert [cell.status for cell in results.cells] == ["done"]
    assert not results.complete
    assert not (tmp_path / "out" / "checkpoints" / "reference-max.default.interrupted").exists()


def test_another_study_may_not_use_the_folder(copy: Path, again):
    with pytest.raises(OutputError, match="holds the study 'a-study' as another file says it; choose another"):
        again(copy, BOTH.replace("compare = true", "seed = 1"))


def test_a_folder_of_other_things_is_refused(tmp_path: Path, again):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="not empty, and no study's output; choose another folder"):
        again(tmp_path)
    (tmp_path / "results.json").write_text('{"schema_version": 9}')
    with pytest.raises(OutputError, match=r"not a study's results .*schema_version"):
        again(tmp_path)


def test_two_runs_at_once_are_refused(copy: Path, again):
    import fcntl

    with (copy / LOCK_FILE).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(OutputError, match="another run of this study is at work there"):
            again(copy)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOTH + "[calibration]\nsamples = 1\n", None),
        (BOTH.replace("W4A16", "W4A4"), r"reference-max\.default\.modelopt, .*: quantizer 'reference' reads no"),
        (BOTH.replace("scheme", 'exclude = ["*.nothing"]\nscheme'), r"pattern '\*\.nothing' matches no module"),
        ('device = "cuda:99"\n' + BOTH, r"quantizer 'reference' runs on the CPU"),
        (
            '[calibration]\nsequence_length = 4096\n[matrix]\nquantizers = ["modelopt"]\nlayouts = ["modelopt"]\n',
            r"sequence_length: 4096 is longer than the model's 256 positions",
        ),
        (
            '[calibration]\nsource = "none.jsonl"\nsequence_length = 32\n'
            '[matrix]\nquantizers = ["modelopt"]\nlayouts = ["modelopt"]\n',
            r"calibration: none\.jsonl: no such file",
        ),
    ],
)
def test_the_model_is_read_before_any_work(text, message, registry: Registry, model: Path, make_study: MakeStudy):
    study = make_study(text, model=model)
    if message is None:
        assert plan_study(study, registry).model_path == model
        return
    with pytest.raises(ConfigError, match=message):
        plan_study(study, registry)


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
