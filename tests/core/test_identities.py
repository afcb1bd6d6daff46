"""What makes a kept result another one: the exporter's code, threads, calibration data, a file changed since."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from fourfold.calibration import CalibrationSpec
from fourfold.checkpoint.stream import ShardWriter
from fourfold.conformance.model import make_model
from fourfold.errors import OutputError
from fourfold.hookspecs import hookimpl
from fourfold.manifest import Component, Manifest, sha256_file
from fourfold.pipeline import Pipeline, QuantizeResult
from fourfold.plan import QuantizeConfig, plan_quantize
from fourfold.plugins import Entry, Registry, build_plugin_manager
from fourfold.progress import NoProgress
from fourfold.stages.process import run_in_process
from fourfold.stages.store import StageStore, identity_sha256
from fourfold.study import LocalExecutor, plan_study, run_study
from fourfold.study.spec import parse_study
from fourfold.versions import code_sha256

EXPORTER = "from fourfold_modelopt.exporter import ModelOptExporter\n\n\nclass Own(ModelOptExporter):\n    pass\n"
STUDY = """
name = "a-study"
summary = "for a test"
model = "{model}"
[recipe]
scheme = "W4A16"
[[cells]]
name = "own"
quantizer = "reference"
layout = "own"
"""


class Plugin:
    """An exporter, and an unfuser by name, in a package of their own, beside those that are installed."""

    @staticmethod
    @hookimpl
    def fourfold_register_exporters() -> list[Entry]:
        return [Entry(name="own", summary="a test's", implementation="own_plugin.code:Own")]

    @staticmethod
    @hookimpl
    def fourfold_register_unfusers() -> list[Entry]:
        return [Entry(name="own", summary="a test's", implementation="own_plugin.code:OwnUnfuser")]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("identities") / "model")


@pytest.fixture
def exporter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The source of the exporter ``own``."""
    package = tmp_path / "plugin" / "own_plugin"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "code.py").write_text(EXPORTER)
    monkeypatch.syspath_prepend(package.parent)
    code_sha256.cache_clear()
    yield package / "code.py"
    code_sha256.cache_clear()
    for name in ("own_plugin", "own_plugin.code"):
        sys.modules.pop(name, None)


@pytest.fixture
def own(exporter: Path) -> Registry:
    from fourfold_modelopt import hooks

    return Registry(build_plugin_manager([hooks, Plugin]))


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets them, as ``OMP_NUM_THREADS`` does; as many afterwards as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield torch.set_num_threads
    torch.set_num_threads(before)


def change(exporter: Path) -> None:
    """As an upgrade does, which a new process sees."""
    exporter.write_text(EXPORTER + "    repaired = True\n")
    code_sha256.cache_clear()


def config(model: Path | str, **changes: object) -> QuantizeConfig:
    asked = {"recipe": {"scheme": "W4A16"}, "quantizer": {"name": "reference"}, "layout": "own"}
    return QuantizeConfig.parse({"model": str(model), **asked, **changes}, where="")


def test_a_crash_in_verify_keeps_the_output_of_equal_code_and_threads_alone(
    own: Registry, exporter: Path, model: Path, tmp_path: Path, threads, monkeypatch: pytest.MonkeyPatch
):
    plan, output = plan_quantize(config(model), own), tmp_path / "out"

    def run() -> QuantizeResult:
        return Pipeline(plan, own, NoProgress(), output=output, stages=tmp_path / "stages").run()[0]

    def crash(*_: object, **__: object) -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        patch.setattr("fourfold.pipeline.verify_checkpoint", crash)
        run()
    assert (output / "manifest.json").is_file()
    threads(2)
    with pytest.raises(OutputError, match="output folder is not empty; choose another or remove it"):
        run()
    threads(1)
    change(exporter)
    with pytest.raises(OutputError, match="output folder is not empty; choose another or remove it"):
        run()
    exporter.write_text(EXPORTER)
    code_sha256.cache_clear()
    result = run()
    assert result.verified
    assert {stage.name for stage in result.stages if stage.reused} == {"quantize", "export"}


def test_a_studys_cell_is_kept_by_equal_code_and_threads_alone(
    own: Registry, exporter: Path, model: Path, tmp_path: Path, threads
):
    plan = plan_study(parse_study(tomllib.loads(STUDY.format(model=model))), own)

    class Notes(NoProgress):
        def __init__(self) -> None:
            self.kept = False

        def note(self, text: str) -> None:
            self.kept |= text == "own: complete, kept"

    def kept() -> bool:
        notes = Notes()
        assert run_study(plan, own, LocalExecutor(own), tmp_path / "study", notes).ok
        return notes.kept

    assert not kept()
    assert kept()
    change(exporter)
    assert not kept()
    assert kept()
    threads(2)
    assert not kept()
    assert kept()


def test_a_calibration_file_is_known_by_its_content_and_threads_of_a_gpus_stage_by_nothing(
    own: Registry, tmp_path: Path
):
    data = tmp_path / "rows.txt"
    data.write_text("a row\n")
    spec = CalibrationSpec(source=str(data), samples=1, sequence_length=8).model_dump(mode="json")
    plan = plan_quantize(config("demo", recipe={"scheme": "W4A4"}, calibration=spec), own)

    def identity(device: str = "cpu", threads: int = 1) -> dict[str, object]:
        asked = dataclasses.replace(plan, config=plan.config.model_copy(update={"device": device}))
        files = {"config.json": "0" * 64}
        pipeline = Pipeline(asked, own, NoProgress(), output=tmp_path / "out", source_files=files, threads=threads)
        return json.loads(json.dumps(pipeline.identity()))

    before = identity()
    assert identity() == before
    assert identity(threads=2) != before
    assert identity("cuda") == identity("cuda", threads=2)
    data.write_text("another row\n")
    assert identity() != before
    plan = plan_quantize(config("demo", calibration=spec), own)  # W4A16 reads no tokens
    without = identity()
    data.write_text("a row\n")
    assert identity() == without


def test_an_unfuser_of_another_package_is_known_by_its_code(own: Registry, exporter: Path, tmp_path: Path):
    plan = plan_quantize(config("demo", layout="modelopt"), own)

    def identity(unfuser: str) -> dict[str, object]:
        asked = dataclasses.replace(plan, unfuser=Component(name=unfuser))
        return Pipeline(asked, own, NoProgress(), output=tmp_path / "out", source_files={}).identity()

    before = {name: identity(name) for name in ("own", "reference")}
    change(exporter)
    assert {name: identity(name) == before[name] for name in before} == {"own": False, "reference": True}


def test_the_hash_that_a_stage_is_sent_decides_nothing(
    own: Registry, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """It is that of the identity which stands in the stage's own record, and no part of it."""
    plan, sent = plan_quantize(config(model), own), []

    def watched(python, request, *rest) -> None:
        sent.append(request)
        run_in_process(python, request, *rest)

    def make() -> Path:
        return Pipeline(plan, own, NoProgress(), output=tmp_path / "out", stages=tmp_path / "stages").make_artifact()

    monkeypatch.setattr("fourfold.pipeline.run_in_process", watched)
    made = make()
    assert make() == made
    assert len(sent) == 1
    record = json.loads((made / "stage.json").read_text())
    assert sent[0].stage_sha256 == identity_sha256(record["identity"])
    assert "stage_sha256" not in record["identity"]
    assert sent[0].model_copy(update={"stage_sha256": None}).identity == sent[0].identity


def test_a_file_that_changed_since_its_manifest_is_no_finished_stages(tmp_path: Path):
    store = StageStore(tmp_path)
    manifest = Manifest(
        kind="artifact", layout="canonical", source_files={}, recipe=config("m").recipe, unfuser=Component(name="u"),
        quantizer=Component(name="q"), seed=0, packages={}, tensors={}, quantized_modules=(),
    )  # fmt: skip

    def make(name: str, *, damaged: bool) -> Path | None:
        with store.create(name, {}) as (partial, _):
            (partial / "data").write_text("result")
            (partial / "gone").write_text("removed by the quantizer")
            files = {path.name: sha256_file(path) for path in partial.iterdir()}
            manifest.model_copy(update={"files": files}).write(partial)
            (partial / "gone").unlink()
            (partial / "more").mkdir()
            (partial / "more" / "data").write_text("of equal name, and not in the manifest")
            if damaged:
                (partial / "data").write_text("resulT")
        return store.find(name, {})

    found = make("whole", damaged=False)
    assert found is not None
    files = json.loads((found / "stage.json").read_text())["files"]
    assert files == {name: sha256_file(found / name) for name in ("data", "manifest.json", "more/data")}
    assert make("damaged", damaged=True) is None
    shutil.rmtree(found)


@pytest.mark.parametrize("max_shard_bytes", [64, 4096], ids=["several shards", "one"])
def test_every_shards_digest_is_its_own(tmp_path: Path, max_shard_bytes: int):
    for name, digest in (("hashed", sha256_file), ("plain", None)):
        (tmp_path / name).mkdir()
        shards = ShardWriter(tmp_path / name, max_shard_bytes=max_shard_bytes, digest=digest)
        for number in range(4):
            shards.add(f"t{number}", torch.full((16,), float(number)))
        files = shards.finish()
        assert len(files) == (4 if max_shard_bytes == 64 else 1)
        assert shards.digests == ({file: sha256_file(tmp_path / name / file) for file in files} if digest else {})


def test_code_of_a_plugin_of_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = tmp_path / "lonely_plugin.py"
    monkeypatch.syspath_prepend(str(tmp_path))
    found = set()
    for text in ("A = 1\n", "A = 2\n"):
        plugin.write_text(text, encoding="utf-8")
        code_sha256.cache_clear()
        found.add(code_sha256(("lonely_plugin",)))
    code_sha256.cache_clear()
    assert len(found) == 2
    assert code_sha256(()) not in found
