"""Study files: what is refused, with which words, and that every shipped one is right."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from fourfold.calibration.spec import Packing
from fourfold.config import Scheme
from fourfold.errors import ConfigError
from fourfold.plugins import Registry
from fourfold.study import check_study, load_study
from fourfold.study.spec import parse_study

from .conftest import MakeStudy

STUDIES = sorted((Path(__file__).parents[3] / "studies").glob("*.toml"))
MATRIX = '[matrix]\nquantizers = ["modelopt"]\nlayouts = ["modelopt"]\n'


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("validating a study opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_the_four_studies_are_shipped():
    assert {"demo-crosscheck", "gemma4-seed", "gemma4-crosscheck", "gemma4-experts-only"} <= {
        path.stem for path in STUDIES
    }


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
@pytest.mark.usefixtures("no_network")
def test_every_shipped_study_is_valid_without_its_model(path: Path, registry: Registry):
    study = load_study(path)
    assert study.name == path.stem
    assert check_study(study, registry)


def test_the_crosscheck_is_two_by_two_by_two(registry: Registry):
    (path,) = (path for path in STUDIES if path.stem == "demo-crosscheck")
    cells = check_study(load_study(path), registry)
    made_of = {(c.config.unfuser.name, c.config.quantizer.name, c.config.layout) for c in cells if c.config.unfuser}
    layouts = ("modelopt", "compressed-tensors")
    assert made_of == {
        (unfuser, quantizer, layout)
        for quantizer in ("modelopt", "llmcompressor")
        for unfuser in ("reference", quantizer)
        for layout in layouts
    }


def test_the_seed_is_the_published_recipe(registry: Registry):
    (path,) = (path for path in STUDIES if path.stem == "gemma4-seed")
    (cell,) = check_study(load_study(path), registry)
    calibration = cell.config.calibration
    assert (calibration.source, calibration.samples, calibration.sequence_length, calibration.batch_size) == (
        "cnn_dailymail", 4096, 1024, 16,
    )  # fmt: skip
    assert calibration.packing is Packing.TRUNCATE
    assert cell.config.recipe.scheme is Scheme.W4A4
    assert cell.config.recipe.targets == "all-linear"
    assert (cell.config.device, cell.config.quantizer.name) == ("cuda", "modelopt")
    assert cell.config.unfuser is not None
    assert cell.config.unfuser.options == {"calibrate_all_experts": False}


def test_cells_that_share_a_stage_follow_each_other(registry: Registry, make_study: MakeStudy):
    text = '[matrix]\nunfusers = ["reference"]\nquantizers = ["modelopt"]\nlayouts = ["modelopt"]\n' + (
        '[[cells]]\nname = "other"\nquantizer = "llmcompressor"\nlayout = "modelopt"\n'
        '[[cells]]\nname = "late"\nquantizer = "modelopt"\nunfuser = "reference"\nlayout = "compressed-tensors"\n'
    )
    names = [cell.name for cell in check_study(make_study(text), registry)]
    assert names == ["modelopt-max.reference.modelopt", "late", "other"]


def test_demo_gets_its_own_calibration_and_the_studys_seed(make_study: MakeStudy):
    study = make_study("seed = 7\n" + MATRIX)
    assert (study.calibration.source, study.calibration.samples, study.calibration.seed) == ("demo", 64, 7)


def test_a_cells_recipe_changes_single_keys(registry: Registry, make_study: MakeStudy):
    text = '[recipe]\ntargets = "experts-only"\n[[cells]]\nname = "one"\nquantizer = "modelopt"\nlayout = "modelopt"\n'
    (cell,) = check_study(make_study(text + 'recipe = { scheme = "W4A16" }\n'), registry)
    assert (cell.config.recipe.scheme, cell.config.recipe.targets) == (Scheme.W4A16, "experts-only")


def test_what_is_left_out_is_left_out(registry: Registry, make_study: MakeStudy):
    text = (
        '[matrix]\nunfusers = ["own", "reference"]\n'
        'quantizers = ["modelopt", { name = "modelopt", algorithm = "gptq" }]\nlayouts = ["modelopt"]\n'
        '[[matrix.leave_out]]\nalgorithm = "gptq"\nunfuser = "own"\nreason = "the wrapper is passed by"\n'
    )
    names = [cell.name for cell in check_study(make_study(text), registry)]
    assert names == [
        "modelopt-max.own.modelopt", "modelopt-max.reference.modelopt", "modelopt-gptq.reference.modelopt",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"a study needs a \[matrix\] or \[\[cells\]\]"),
        ("[matrix]\n", r"matrix: an empty table; leave it out"),
        ("[recipe]\n" + MATRIX, r"recipe: an empty table; leave it out"),
        ("[calibration]\n" + MATRIX, r"calibration: an empty table"),
        ("calibration = 3\n" + MATRIX, r"calibration: should be a table \(given: 3\)"),
        ("colour = 1\n" + MATRIX, r"^colour: unknown key"),
        ('[recipe]\nschema = "W4A4"\n' + MATRIX, r"^recipe\.schema: unknown key"),
        ('[recipe]\nscheme = "W8A8"\n' + MATRIX, r"^recipe\.scheme: should be 'W4A4' or 'W4A16' \(given: 'W8A8'\)"),
        ("[calibration]\nsampels = 3\n" + MATRIX, r"^calibration\.sampels: unknown key"),
        ("[calibration]\nsamples = 0\n" + MATRIX, r"^calibration\.samples: .* \(given: 0\)"),
        ("seed = -1\n" + MATRIX, r"seed: .*greater than or equal to 0"),
        (MATRIX + "quantisers = []\n", r"^matrix\.quantisers: unknown key"),
        ('[matrix]\nquantizers = []\nlayouts = ["modelopt"]\n', r"^matrix\.quantizers: .*at least 1 item"),
        (MATRIX + "unfusers = []\n", r"^matrix\.unfusers: .*at least 1 item"),
        (
            '[[cells]]\nname = "A b"\nquantizer = "modelopt"\nlayout = "modelopt"\n',
            r"^cells\.0\.name: .*match pattern",
        ),
        ('[[cells]]\nname = "../up"\nquantizer = "modelopt"\nlayout = "modelopt"\n', r"^cells\.0\.name: "),
        (
            '[[cells]]\nname = "a"\nlayout = "modelopt"\nquantizer = { name = "modelopt", options = '
            '{ algorithm = "max" } }\n',
            r"^cells\.0\.quantizer: give the algorithm beside name",
        ),
        (MATRIX + '[[matrix.leave_out]]\nreason = "all"\n', r"^matrix\.leave_out\.0: say which cells"),
        (MATRIX + '[[matrix.leave_out]]\nlayout = "modelopt"\n', r"^matrix\.leave_out\.0\.reason: Field required"),
    ],
)
def test_a_wrong_file_is_refused_by_key(text: str, message: str, make_study: MakeStudy):
    with pytest.raises(ConfigError, match=message):
        make_study(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MATRIX.replace('"modelopt"', '"modlopt"', 1), r"unknown quantizer 'modlopt'; known: llmcompressor, modelopt"),
        (MATRIX.replace('layouts = ["modelopt"]', 'layouts = ["gguf"]'), r"gguf: unknown exporter 'gguf'; known: comp"),
        (
            MATRIX + 'unfusers = ["refrence"]\n',
            r"unknown unfuser 'refrence'; known: llmcompressor, modelopt, reference",
        ),
        (MATRIX + 'unfusers = ["llmcompressor"]\n', r"'llmcompressor' does not work with quantizer 'modelopt'; these"),
        (
            MATRIX + 'unfusers = [{ name = "reference", options = { all = true } }]\n',
            r"unfuser\.all: unknown key",
        ),
        (
            MATRIX.replace('["modelopt"]', '[{ name = "modelopt", algorithm = "maxx" }]', 1),
            r"modelopt-maxx\.default\.modelopt: quantizer\.algorithm: should be 'max'",
        ),
        (
            MATRIX.replace('["modelopt"]', '[{ name = "modelopt", options = { damping = 1 } }]', 1),
            r"modelopt-max\.default\.modelopt: quantizer\.damping: unknown key",
        ),
        (
            MATRIX.replace('["modelopt"]', '[{ name = "modelopt", algorithm = "awq-lite" }]', 1),
            r"algorithm awq-lite is refused",
        ),
        (
            MATRIX.replace('["modelopt"]', '[{ name = "modelopt", algorithm = "gptq" }]', 1) + 'unfusers = ["own"]\n',
            r"modelopt-gptq\.own\.modelopt: algorithm gptq needs every expert's own inputs",
        ),
        (MATRIX.replace('["modelopt"]', '["modelopt", "modelopt"]', 1), r"two cells have this name; give one of their"),
        (
            MATRIX + '[[cells]]\nname = "same"\nquantizer = "modelopt"\nunfuser = "own"\nlayout = "modelopt"\n',
            r"same: the same run as modelopt-max\.default\.modelopt; leave one out",
        ),
        (
            MATRIX + '[[matrix.leave_out]]\nalgorithm = "gptq"\nreason = "slow"\n',
            r"matrix\.leave_out\.0: matches no cell",
        ),
        (
            MATRIX + '[[matrix.leave_out]]\nquantizer = "modelopt"\nreason = "slow"\n',
            r"matrix\.leave_out: leaves no cell",
        ),
        (
            '[[cells]]\nname = "one"\nquantizer = "modelopt"\nlayout = "modelopt"\nrecipe = { schem = "W4A4" }\n',
            r"one: recipe\.schem: unknown key",
        ),
        (
            '[[cells]]\nname = "baseline"\nquantizer = "modelopt"\nlayout = "modelopt"\n',
            r"baseline: the name of the unquantized model's evaluation; give the cell another",
        ),
    ],
)
def test_a_wrong_cell_is_named(text: str, message: str, registry: Registry, make_study: MakeStudy):
    with pytest.raises(ConfigError, match=message):
        check_study(make_study(text), registry)


def test_all_that_is_wrong_is_said_at_once(registry: Registry, make_study: MakeStudy):
    text = (
        '[matrix]\nunfusers = ["refrence"]\nlayouts = ["gguf", "modelopt"]\n'
        'quantizers = ["modelopt", { name = "llmcompressor", algorithm = "maxx" }, "vllm"]\n'
    )
    with pytest.raises(ConfigError) as caught:
        check_study(make_study(text), registry)
    said = str(caught.value)
    for part in ("unknown exporter 'gguf'", "unknown unfuser 'refrence'", "quantizer.algorithm", "unknown quantizer"):
        assert part in said
    # the layout is wrong in two cells, and said once
    assert "modelopt-max.refrence.gguf, llmcompressor-maxx.refrence.gguf: unknown exporter" in said
    assert said.count("unknown exporter 'gguf'") == 1


def test_what_is_asked_is_checked_too(registry: Registry, make_study: MakeStudy, tmp_path: Path):
    asked = (
        'tasks = ["nobody:task", "demo-math", { name = "demo-clip", options = { colour = 1 } }, "gms8k", "gsm8k", '
        '{ name = "kl", options = { prompts = "file" } }]\n'
    )

    def said(more: str) -> str:
        with pytest.raises(ConfigError) as caught:
            check_study(make_study(f"{MATRIX}[evaluate]\n{asked}{more}"), registry)
        return str(caught.value)

    everything = said(f'data = "{tmp_path}"\nserver = "vlm"\n')
    for part in (
        "evaluate: unknown task 'nobody:task'",
        "evaluate: demo-clip.colour: unknown key",
        "evaluate: unknown task 'gms8k'; near names: gsm8k",
        f"evaluate: {tmp_path}/gsm8k_train.jsonl: not there",
        "evaluate: kl: prompts.jsonl is not there",
        "evaluate: unknown server 'vlm'",
    ):
        assert part in everything
    assert "study a-study: 6 wrong, nothing was run" in everything
    assert "evaluate: data: no/such/folder: not a folder" in said('data = "no/such/folder"\n')


def test_a_quantizer_without_an_unfuser_of_its_own_says_which_it_knows():
    import fourfold.plugins as plugins
    from fourfold.interfaces.quantizer import QuantizerOptions

    class Alone:
        @staticmethod
        @__import__("fourfold.hookspecs", fromlist=["hookimpl"]).hookimpl
        def fourfold_register_quantizers():
            return [
                plugins.QuantizerEntry(
                    name="alone", summary="a test's", implementation="nowhere:No", options=QuantizerOptions
                )
            ]

    registry = plugins.Registry(plugins.build_plugin_manager([Alone]))
    study = parse_study(
        {
            "name": "x", "summary": "x", "model": "demo",
            "matrix": {"quantizers": ["alone"], "unfusers": ["own"], "layouts": ["modelopt"]},
        }
    )  # fmt: skip
    with pytest.raises(ConfigError, match="quantizer 'alone' has no unfuser of its own; name one of: reference"):
        check_study(study, registry)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"no\.toml: cannot be read \(No such file or directory\)"),
        (b"name = ", r"no\.toml: not TOML: "),
        (b"\xff\xfe", r"no\.toml: not UTF-8 \(byte 0\)"),
        (b'name = "a"', r"no\.toml: summary: Field required"),
    ],
)
def test_a_file_that_is_no_study_is_named(content: bytes | None, message: str, tmp_path: Path):
    path = tmp_path / "no.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        load_study(path)
