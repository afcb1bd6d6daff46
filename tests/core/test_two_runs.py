"""Two runs at once: for one output, of one folder of kept stages; and stages that would lie in the output."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fourfold.conformance.model import make_model
from fourfold.errors import OutputError
from fourfold.pipeline import Pipeline, QuantizeResult
from fourfold.plan import QuantizeConfig, plan_quantize
from fourfold.plugins import Registry
from fourfold.progress import NoProgress

FOURFOLD = Path(sys.executable).parent / "fourfold"
#: One layer and few tokens.
OPTIONS = (
    "--quantizer", "reference", "--include", "*.layers.0.*",
    "--samples", "4", "--sequence-length", "64", "--batch-size", "4",
)  # fmt: skip
BEING_WRITTEN = "out: another run is writing it; wait for it, or choose another --output"

Run = Callable[..., QuantizeResult]


class Meanwhile(NoProgress):
    """Does something once, while a stage is made."""

    def __init__(self, act: Callable[[], object]) -> None:
        self._act: Callable[[], object] | None = act

    def begin(self, task: str, *, total: int | None, unit: str) -> None:
        if task == "quantize weights" and (act := self._act):
            self._act = None
            act()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("two-runs") / "model")


@pytest.fixture
def run(model: Path, registry: Registry, tmp_path: Path) -> Run:
    """A run of the reference quantizer into ``out``."""

    def run(
        act: Callable[[], object] = lambda: None, *, output: Path = tmp_path / "out", stages: Path | None = None, seed=0
    ) -> QuantizeResult:
        asked = {"model": str(model), "recipe": {"scheme": "W4A16"}, "quantizer": {"name": "reference"}, "seed": seed}
        plan = plan_quantize(QuantizeConfig.parse(asked, where=""), registry)
        return Pipeline(plan, registry, Meanwhile(act), output=output, stages=stages).run()[0]

    return run


def test_a_second_run_for_an_output_is_refused_and_the_first_one_ends_well(run: Run, tmp_path: Path):
    refused = []

    def second() -> None:
        with pytest.raises(OutputError, match=f"{BEING_WRITTEN}$"):
            run(seed=1)
        refused.append(list(tmp_path.glob(".out.stages/.quantize-*.partial")))

    assert run(second).verified
    assert [len(partials) for partials in refused] == [1], "the first run's stage is gone"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_refused_run_leaves_no_folder(run: Run, tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(OutputError, match="output folder is not empty"):
        run()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_kept_stages_are_shared_by_runs_at_work_at_the_same_time(run: Run, tmp_path: Path):
    stages, results = tmp_path / "stages", []

    def second() -> None:
        results.append(run(output=tmp_path / "other", stages=stages, seed=1))

    results.append(run(second, stages=stages))
    assert [result.verified for result in results] == [True, True]
    assert len([path for path in stages.glob("quantize-*") if path.is_dir()]) == 2


@pytest.mark.parametrize("stages", ["out", "out/stages", "elsewhere/stages"])
def test_stages_in_the_output_are_refused_before_anything_is_made(cli, tmp_path: Path, stages: str):
    (tmp_path / "elsewhere").symlink_to("out")
    refused = cli("quantize", "demo", *OPTIONS, "--output", "out", "--stages", stages, cwd=tmp_path)
    assert refused.returncode == 2
    assert refused.stderr == (
        f"fourfold: {stages}: finished stages cannot be kept in the output folder {tmp_path / 'out'}; "
        "give --stages a folder beside it\n"
    )
    assert not (tmp_path / "out").exists()


def test_an_output_among_the_stages_is_in_nobodys_way(run: Run, tmp_path: Path):
    assert run(output=tmp_path / "stages" / "out", stages=tmp_path / "stages").verified
    again = run(output=tmp_path / "stages" / "again", stages=tmp_path / "stages")
    assert {stage.name for stage in again.stages if stage.reused} == {"quantize"}


def test_a_killed_runs_folder_is_taken_up_by_the_same_command(tmp_path: Path, cli, cli_json):
    command = ("quantize", "demo", "--output", tmp_path / "out", *OPTIONS)
    first = stopped_in_quantize([FOURFOLD, *command], tmp_path)
    second = cli(*command, "--seed", "1")
    assert second.returncode == 2
    assert second.stderr.endswith(f"{BEING_WRITTEN}\n")
    first.kill()
    first.communicate()
    result = cli_json(*command)
    assert result["exit_code"] == 0
    assert {s["name"] for s in result["stages"] if s["reused"]} == {"tokens"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def stopped_in_quantize(command: list[object], folder: Path) -> subprocess.Popen[str]:
    """The run held still by SIGSTOP while its artifact is made; one that was faster is run again."""
    for _ in range(10):
        process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while not list(folder.glob(".out.stages/.quantize-*.partial")):
            assert process.poll() is None, process.communicate()
            time.sleep(0.002)
        process.send_signal(signal.SIGSTOP)
        if list(folder.glob(".out.stages/.quantize-*.partial")):
            return process
        process.kill()
        process.communicate()
        for path in folder.iterdir():
            shutil.rmtree(path)
    pytest.fail("never saw the stage while the run stood still")
