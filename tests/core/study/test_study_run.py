"""Running studies: what is kept, what goes on, what ends, and what is written down."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fourfold.errors import CheckpointError, ConfigError, OutputError
from fourfold.hookspecs import hookimpl
from fourfold.interfaces.exporter import Exporter
from fourfold.plugins import Entry, Registry, build_plugin_manager
from fourfold.progress import NoProgress
from fourfold.study import LocalExecutor, plan_study, run_study, study_tables
from fourfold.study.results import LOCK_FILE, PairResult, Share

from .conftest import BOTH, CELLS, MEMBERS, MakeStudy, Notes, read


class Failing(Exporter):
    error: Exception | type[BaseException] = CheckpointError("this layout has no words for it")

    def export(self, artifact, destination, progress) -> None:
        raise self.error


class Crashing(Failing):
    error = RuntimeError("a plugin's own fault")


class Silent(Failing):
    error = CheckpointError()


class Interrupted(Failing):
    error = KeyboardInterrupt


class Faulty:
    @staticmethod
    @hookimpl
    def fourfold_register_exporters() -> list[Entry]:
        return [
            Entry(name=kind.__name__.lower(), summary="a test's", implementation=f"{__name__}:{kind.__name__}")
            for kind in (Failing, Crashing, Silent, Interrupted)
        ]


@pytest.fixture
def faulty() -> Registry:
    registry = Registry(build_plugin_manager([*MEMBERS, Faulty]))
    load = registry.load

    def local(role, name):
        kinds = {kind.__name__.lower(): kind for kind in (Failing, Crashing, Silent, Interrupted)}
        return kinds.get(name) or load(role, name)

    registry.load = local
    return registry


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
    assert notes == [f"{name}: complete, kept" for name in CELLS]


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
    assert notes == [f"{CELLS[0]}: complete, kept", f"job 1 of 2, quantize {CELLS[1]}", f"job 2 of 2, cell {CELLS[1]}"]
    assert not (folder / "extra.json").exists()


def test_a_card_beside_a_checkpoint_is_no_damage(copy: Path, again):
    added = [copy / "checkpoints" / CELLS[1] / name for name in ("README.md", "LICENSE.txt")]
    for path in added:
        path.write_text("a publisher's")
    before = read(copy)
    results, notes = again(copy)
    assert (results, notes) == (before, [f"{name}: complete, kept" for name in CELLS])
    assert all(path.is_file() for path in added)


def test_doubts_are_counted_beside_the_yes(finished: Path):
    results = read(finished)

    def verified(**changes) -> str:
        cell = results.cells[0].model_copy(update=changes)
        return study_tables(results.model_copy(update={"cells": (cell,)}))[0].rows[0][3]

    assert verified() == "yes"
    assert verified(findings=14) == "yes, 14 doubts"
    assert verified(findings=1) == "yes, 1 doubt"
    assert verified(findings=14, verified=False) == "no: 14 findings"


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
    results = run_study(plan_study(study, faulty), faulty, LocalExecutor(faulty), tmp_path / "out", NoProgress())
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
    run_study(plan_study(study, faulty), faulty, LocalExecutor(faulty), tmp_path / "out", notes)
    assert [note for note in notes.texts if note.endswith("kept")] == [f"{done.name}: complete, kept"]


def test_a_failure_without_a_message_is_told_by_its_type(faulty: Registry, model: Path, make_study, tmp_path: Path):
    text = '[recipe]\nscheme = "W4A16"\n[matrix]\nquantizers = ["reference"]\nlayouts = ["silent"]\n'
    text += '[evaluate]\ntasks = ["size"]\n'
    plan, notes = plan_study(make_study(text, model=model), faulty), Notes()
    results = run_study(plan, faulty, LocalExecutor(faulty), tmp_path / "out", notes)
    assert f"cell {results.cells[0].name} failed: no message" in notes.texts
    cells, kept = study_tables(results)
    assert cells.rows[0][3] == kept.rows[1][1] == "failed: CheckpointError: no message"


def test_an_interruption_ends_the_run_and_keeps_what_is_done(faulty: Registry, model: Path, make_study, tmp_path: Path):
    text = '[recipe]\nscheme = "W4A16"\n[matrix]\nquantizers = ["reference"]\n'
    study = make_study(text + 'layouts = ["modelopt", "interrupted", "failing"]\n', model=model)
    with pytest.raises(KeyboardInterrupt):
        run_study(plan_study(study, faulty), faulty, LocalExecutor(faulty), tmp_path / "out", NoProgress())
    results = read(tmp_path / "out")
    assert [cell.status for cell in results.cells] == ["done"]
    assert not results.complete
    assert not (tmp_path / "out" / "checkpoints" / "reference-max.default.interrupted").exists()


@pytest.mark.parametrize(
    ("text", "cell"),
    [(f"seed = 1\n{BOTH}", CELLS[1]), (BOTH.replace('"modelopt", ', ""), CELLS[0])],
    ids=["every cell is another", "one is missing"],
)
def test_a_study_of_other_cells_may_not_use_the_folder(text: str, cell: str, copy: Path, again):
    with pytest.raises(OutputError, match=rf"holds the study 'a-study' with other cells \(such as {cell}\); choose an"):
        again(copy, text)


def test_comparing_may_be_switched_and_cells_stay(copy: Path, again):
    compared = read(copy)
    a, b = compared.cells
    assert None not in (a.manifest_sha256, b.manifest_sha256)
    none = Share(tensors=0, equal=0, elements=0, differing_elements=0)
    pair = PairResult(
        a=a.name, b=b.name, a_manifest_sha256=str(a.manifest_sha256), b_manifest_sha256=str(b.manifest_sha256),
        stands_for=(), packed_weights=none, block_scales=none, causes={}, differing=0, explained=0,
    )  # fmt: skip
    compared.model_copy(update={"pairs": (pair,)}).write(copy)
    off, notes = again(copy, BOTH.replace("compare = true", "compare = false"))
    assert (off.ok, off.pairs, notes) == (True, (), [f"{name}: complete, kept" for name in CELLS])
    assert not off.study.compare
    # as if they had never been compared
    cells = tuple(cell.model_copy(update={"equal_to_artifact": None}) for cell in off.cells)
    off.model_copy(update={"cells": cells}).write(copy)
    on, notes = again(copy)
    assert on == compared
    assert notes == [f"{name}: complete, kept" for name in CELLS]
    # what they would be compared with is gone
    off.model_copy(update={"cells": cells}).write(copy)
    shutil.rmtree(copy / "stages")
    on, notes = again(copy)
    assert [cell.equal_to_artifact for cell in on.cells] == [True, True]
    assert not any("kept" in note for note in notes)


def test_an_interruption_before_the_first_results_leaves_a_folder_to_go_on_in(
    model: Path, again, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("fourfold.study.run.hash_source", interrupt)
        again(tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [LOCK_FILE]
    results, _ = again(tmp_path / "out")
    assert results.ok


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
        (BOTH.replace("scheme", 'exclude = ["*.nothing"]\nscheme'), r"pattern '\*\.nothing' matches no module"),
        (
            'device = "cuda:99"\n' + BOTH,
            r"reference-max\.default\.modelopt, .*: device 'cuda:99': no CUDA GPU is visible",
        ),
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
