"""What a study asks its cells: checked before the first of them, changed without losing them, never mixed."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest

from eval.endpoint import FakeEndpoint, serving
from fourfold.errors import ConfigError, MissingEnvironmentError, UnreachableDataError
from fourfold.hookspecs import hookimpl
from fourfold.interfaces.benchmark import PromptBenchmark
from fourfold.interfaces.server import Endpoint, Server
from fourfold.plugins import Entry, Environment, Registry, build_plugin_manager
from fourfold.study import LocalExecutor, StudyResults, check_study, plan_study, run_study

from .conftest import BOTH, CELLS, MEMBERS, MakeStudy, Notes, read

#: No record of it is committed, so that it cannot be made.
NOWHERE = Environment(name="nowhere", package="fourfold-nowhere", extras=(), provides="no_such_module")
KEPT = [f"{name}: complete, kept" for name in CELLS]
MATH = '{ name = "demo-math", limit = 3 }'
OTHER_MATH = '{ name = "demo-math", limit = 3, options = { problem_seed = 1 } }'
INSTRUCT = '{ name = "demo-instruct", limit = 2 }'

Ask = Callable[..., tuple[StudyResults, int, list[str]]]


class Served(Server):
    endpoint: ClassVar[FakeEndpoint]

    def plan(self, checkpoint: Path) -> Any:
        raise NotImplementedError

    @contextmanager
    def serve(self, checkpoint: Path, progress: Any) -> Iterator[Endpoint]:
        with serving(Served.endpoint) as running:
            yield Endpoint(url=f"{running.url}/v1", model="fake-model", owned=True)

    def measure(self, endpoint: Endpoint, loads: Any, progress: Any) -> Any:
        raise NotImplementedError


class FarAway(PromptBenchmark):
    def prompts(self, job: Any) -> Any:
        raise UnreachableDataError("far-away: the hub does not answer")

    def score(self, job: Any, answers: Any) -> Any:
        raise NotImplementedError


class Plugin:
    @staticmethod
    @hookimpl
    def fourfold_register_servers() -> list[Entry]:
        return [
            Entry(name="served", summary="a test's", implementation=f"{__name__}:Served"),
            Entry(name="absent", summary="a test's", implementation=f"{__name__}:Served", environment=NOWHERE),
        ]

    @staticmethod
    @hookimpl
    def fourfold_register_benchmarks() -> list[Entry]:
        return [
            Entry(name="far-away", summary="a test's", implementation=f"{__name__}:FarAway"),
            Entry(name="elsewhere", summary="a test's", implementation=f"{__name__}:FarAway", environment=NOWHERE),
        ]


@pytest.fixture
def asking() -> Registry:
    registry = Registry(build_plugin_manager([*MEMBERS, Plugin]))
    load = registry.load
    own = {"served": Served, "absent": Served, "far-away": FarAway}
    registry.load = lambda role, name: own.get(name) or load(role, name)
    Served.endpoint = FakeEndpoint(lambda _: "#### 0")
    return registry


@pytest.fixture
def ask(asking: Registry, model: Path, make_study: MakeStudy) -> Ask:
    """Run a study with these tasks; its results, how many prompts were asked, and what was said."""

    def run(output: Path, *tasks: str, server: str = "served", **changes: Any) -> tuple[StudyResults, int, list[str]]:
        more = "".join(f"{key} = {value}\n" for key, value in changes.pop("asked", {}).items())
        asked = f'[evaluate]\nserver = "{server}"\ntasks = [{", ".join(tasks)}]\n{more}' if tasks else ""
        study = make_study(BOTH + asked, model=model).model_copy(update=changes)
        notes, before = Notes(), len(Served.endpoint.asked)
        results = run_study(plan_study(study, asking), asking, LocalExecutor(asking), output, notes)
        return results, len(Served.endpoint.asked) - before, notes.texts

    return run


def tasks_of(results: StudyResults) -> set[tuple[str, ...]]:
    records = [evaluation.record for evaluation in results.evaluations]
    assert len(records) == 1 + len(CELLS)
    return {tuple(task.task for task in record.tasks) if record else () for record in records}


def test_what_is_asked_may_change_and_cells_and_equal_questions_are_kept(copy: Path, ask: Ask):
    results, asked, notes = ask(copy, MATH)
    assert (results.ok, asked, notes[:2]) == (True, 3 * 3, KEPT)
    results, asked, notes = ask(copy, MATH, INSTRUCT, name="renamed", summary="and described anew")
    assert (asked, notes[:2], tasks_of(results)) == (3 * 2, KEPT, {("demo-math", "demo-instruct")})
    assert (read(copy).study.name, read(copy).study_sha256) == ("renamed", results.study.sha256())
    results, asked, _ = ask(copy, OTHER_MATH, INSTRUCT)
    assert (asked, tasks_of(results)) == (3 * 3, {("demo-math", "demo-instruct")})
    # a task less: nothing is served, and what is known of the server stays known
    results, asked, _ = ask(copy, OTHER_MATH)
    assert (asked, tasks_of(results)) == (0, {("demo-math",)})
    records = [evaluation.record for evaluation in results.evaluations]
    assert {record.model.served_model if record else None for record in records} == {"fake-model"}
    assert not list(copy.rglob("demo-instruct*"))
    # all that is asked comes out otherwise
    results, asked, _ = ask(copy, OTHER_MATH, asked={"concurrency": 3})
    assert (results.ok, asked) == (True, 3 * 3)
    # no question at all leaves the answers where they are
    results, asked, _ = ask(copy)
    assert (results.ok, results.evaluations) == (True, ())
    results, asked, notes = ask(copy, OTHER_MATH, asked={"concurrency": 3})
    assert (results.ok, asked, notes[:2]) == (True, 0, KEPT)
    assert ask(copy, OTHER_MATH, asked={"concurrency": 3})[2] == [
        *KEPT, *(f"evaluate {name}: complete, kept" for name in ("baseline", *CELLS)),
    ]  # fmt: skip


def test_what_was_asked_otherwise_is_gone_before_anything_is_asked_anew(copy: Path, ask: Ask):
    """An interruption leaves no evaluation beside those of other questions."""
    ask(copy, MATH, INSTRUCT)
    Served.endpoint.dies_after = len(Served.endpoint.asked)
    Served.endpoint.status = 400
    results, _, _ = ask(copy, OTHER_MATH, INSTRUCT)
    assert (results.ok, {evaluation.status for evaluation in results.evaluations}) == (False, {"failed"})
    left = {path.name for path in (copy / "evaluations").glob("*/responses/*")}
    assert left == {"demo-instruct.jsonl"}
    Served.endpoint.dies_after = None
    results, asked, _ = ask(copy, OTHER_MATH, INSTRUCT)
    assert (results.ok, asked) == (True, 3 * 3)


@pytest.mark.parametrize("fault", ["folder", "eval.json", "identity", "responses", "another record"])
def test_a_baseline_that_does_not_stand_is_evaluated_again_and_cells_are_compared_again(
    fault: str, copy: Path, ask: Ask
):
    before, _, _ = ask(copy, MATH)
    folder = copy / "evaluations" / "baseline"
    if fault == "another record":
        path = folder / "eval.json"
        path.write_text(path.read_text().replace('"seconds": ', '"seconds": 1'))
    elif fault == "folder":
        shutil.rmtree(folder)
    elif fault == "responses":
        (folder / "responses" / "demo-math.jsonl").unlink()
    else:
        (folder / fault).unlink()
    (copy / "checkpoints" / CELLS[1] / "tokenizer.json").unlink()
    results, asked, notes = ask(copy, MATH)
    assert results.ok
    assert asked == (3 if fault in ("folder", "identity", "responses") else 0)
    assert [note for note in notes if "kept" in note] == KEPT[:1]
    assert [evaluation.identity for evaluation in results.evaluations] == [e.identity for e in before.evaluations]


def test_what_only_the_hub_could_tell_is_left_to_the_run(asking: Registry, make_study: MakeStudy):
    study = make_study(BOTH + '[evaluate]\nserver = "served"\ntasks = ["far-away", "elsewhere", "demo-math"]\n')
    assert [cell.name for cell in check_study(study, asking)] == list(CELLS)


def test_tasks_are_made_ready_before_the_first_cell(ask: Ask, tmp_path: Path):
    message = r"study a-study: 1 wrong, nothing was run:\n  evaluate: far-away: the hub does not answer"
    with pytest.raises(ConfigError, match=message):
        ask(tmp_path / "out", '"far-away"', MATH)
    assert not (tmp_path / "out" / "checkpoints").exists()
    results, _, _ = ask(tmp_path / "out", MATH)
    assert results.ok


def test_a_refused_study_leaves_what_stands(copy: Path, ask: Ask):
    ask(copy, MATH)
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match="far-away: the hub does not answer"):
        ask(copy, '"far-away"')
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(("task", "server"), [('"elsewhere"', "served"), (MATH, "absent")])
def test_environments_are_made_before_the_first_cell(task: str, server: str, ask: Ask, tmp_path: Path):
    with pytest.raises(
        MissingEnvironmentError, match=r"nowhere\.txt: the committed record of this environment is miss"
    ):
        ask(tmp_path / "out", task, server=server)
    assert not (tmp_path / "out" / "checkpoints").exists()


def test_a_server_that_no_task_needs_is_not_made(copy: Path, ask: Ask):
    results, asked, _ = ask(copy, '"size"', server="absent")
    assert (results.ok, asked) == (True, 0)
