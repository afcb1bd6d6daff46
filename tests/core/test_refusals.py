"""Bad input to the command line: one line that says what to do, exit code 2, nothing left behind."""

from __future__ import annotations

import json
import shutil

import pytest
from typer.testing import CliRunner

from fourfold.cli.app import app
from fourfold.demo import model_path

REFUSALS = {
    "no such model": (["nowhere"], "nowhere: no such model; give 'demo', a folder, or a hub id"),
    "a file": (["{dense}/config.json"], "config.json: a file, not a model folder"),
    "not a mixture of experts": (["{dense}"], "a dense Gemma 4 model; Fourfold quantizes the mixture-of-experts ones"),
    "not a Gemma 4": (["{other}"], "not a Gemma 4 model (model_type 'llama')"),
    "truncated shard": (["{truncated}"], "model-00002-of-00003.safetensors: not a whole safetensors file"),
    "no weights": (["{empty}"], "no weights (model.safetensors or model.safetensors.index.json)"),
    "unknown quantizer": (
        ["demo", "--quantizer", "gptqmodel"],
        "unknown quantizer 'gptqmodel'; known: llmcompressor, modelopt, reference",
    ),
    "unknown unfuser": (
        ["demo", "--unfuser", "split"],
        "unknown unfuser 'split'; known: llmcompressor, modelopt, reference",
    ),
    "another toolchain's unfuser": (
        ["demo", "--unfuser", "llmcompressor"],
        "unfuser 'llmcompressor' does not work with quantizer 'modelopt'; these do: modelopt, reference",
    ),
    "unknown layout": (["demo", "--layout", "gguf"], "unknown exporter 'gguf'; known: compressed-tensors, modelopt"),
    "unknown scheme": (["demo", "--scheme", "W8A8"], "recipe.scheme: should be 'W4A4' or 'W4A16' (given: 'W8A8')"),
    "unknown algorithm": (["demo", "--algorithm", "magic"], "quantizer.algorithm: should be 'max', 'mse'"),
    "unservable algorithm": (["demo", "--algorithm", "svdquant"], "algorithm svdquant is refused: it adds a low-rank"),
    "unknown option": (["demo", "--option", "speed=11"], "quantizer.speed: unknown key"),
    "an option twice": (["demo", "--option", "a=1", "--option", "a=2"], "option a is given twice; which one is meant?"),
    "an algorithm twice": (
        ["demo", "--algorithm", "gptq", "--option", "algorithm=max"],
        "--algorithm and --option algorithm=... say the same thing twice; give --algorithm alone",
    ),
    "a rule that could not hold": (
        ["demo", "--unfuser", "reference", "--unfuser-option", "calibrate_all_experts=true", "--rare-experts", "error"],
        "recipe.rare_experts: error stops for an expert that saw too few tokens, and under calibrate_all_experts",
    ),
    "half an option": (["demo", "--option", "speed"], "option 'speed' is not of the form KEY=VALUE"),
    "pattern without a match": (
        ["demo", "--exclude", "*.mlp.experts.*"],
        "recipe.exclude: pattern '*.mlp.experts.*' matches no module; modules are named like model.language_model",
    ),
    "sequence too long": (
        ["demo", "--sequence-length", "999999999"],
        "calibration.sequence_length: 999999999 is longer than the model's",
    ),
    "no GPU": (["demo", "--device", "cuda:9"], "device 'cuda:9': "),
    "unknown device": (["demo", "--device", "tpu"], "unknown device 'tpu'; known: cpu, cuda, cuda:N, auto"),
    "empty calibration file": (["demo", "--calibration", "{empty.jsonl}"], "empty.jsonl"),
    "wrong field": (["demo", "--calibration", "{texts.jsonl}", "--field", "body"], "body"),
    "too few texts": (["demo", "--calibration", "{texts.jsonl}", "--samples", "500"], "ask for fewer samples"),
    "output taken": (["demo", "--output", "{other}"], "output folder is not empty; choose another or remove it"),
}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Spoilt models and calibration files, by the names the table uses."""
    folder = tmp_path_factory.mktemp("places")
    (folder / "empty").mkdir()
    (folder / "empty.jsonl").write_text("")
    (folder / "texts.jsonl").write_text('{"text": "Some words to calibrate on."}\n')
    for name in ("dense", "other"):
        shutil.copytree(model_path(), folder / name)
    truncated = shutil.copytree(model_path(), folder / "truncated") / "model-00002-of-00003.safetensors"
    truncated.write_bytes(truncated.read_bytes()[:5000])
    config = json.loads((model_path() / "config.json").read_text())
    dense = config | {"text_config": config["text_config"] | {"enable_moe_block": False}}
    (folder / "dense" / "config.json").write_text(json.dumps(dense))
    (folder / "other" / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
    return folder


@pytest.mark.parametrize("name", REFUSALS)
def test_refusal(name, places, tmp_path):
    arguments, message = REFUSALS[name]
    given = [argument.replace("{", f"{places}/").replace("}", "") for argument in arguments]
    output = [] if "--output" in given else ["--output", str(tmp_path / "out")]
    if any(argument.endswith(".jsonl") for argument in given):
        # As far as the tokens stage; its own time is not the point here.
        given = [*given, "--samples", "4"] if "--samples" not in given else given
    result = CliRunner().invoke(app, ["quantize", *given, *output])
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert result.stderr.splitlines()[-1].startswith("fourfold: ")
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.rglob("*.partial"))


def test_help_names_every_command():
    result = CliRunner().invoke(app, ["--help"])
    for command in ("setup", "doctor", "backends", "inspect", "quantize", "verify", "compare", "convert", "study"):
        assert command in result.output


def test_inspect_counts_what_the_headers_say():
    result = CliRunner().invoke(app, ["inspect", "demo", "--json"])
    facts = json.loads(result.stdout)
    assert facts["num_experts"] == 128
    assert facts["experts_per_token"] == 8
    assert facts["fused_expert_share"] >= 0.8
    assert facts["num_parameters"] * 2 == facts["bytes"], "all BF16"
    choices = {choice["targets"]: choice for choice in facts["choices"]}
    assert choices["all-linear"]["bytes"] < choices["experts-only"]["bytes"] < facts["bytes"]


def test_backends_and_doctor_speak_json():
    backends = json.loads(CliRunner().invoke(app, ["backends", "--json"]).stdout)["backends"]
    named = {(b["role"], b["name"]): b for b in backends}
    assert named["quantizer", "modelopt"]["state"] == "ready"
    assert "gptq" in named["quantizer", "modelopt"]["options"]["algorithm"]["enum"]
    doctor = json.loads(CliRunner().invoke(app, ["doctor", "--json"]).stdout)
    assert {check["subject"] for check in doctor["checks"]} >= {"Python", "uv", "environment modelopt", "disk"}
