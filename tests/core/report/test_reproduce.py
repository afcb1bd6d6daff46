"""What a card says makes the checkpoint again is planned, and must come to the very run that was."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from core.report.measured import manifest
from fourfold.cli.app import app
from fourfold.config import Recipe
from fourfold.conformance.model import make_model
from fourfold.errors import FourfoldError
from fourfold.manifest import CalibrationRecord, Component, Manifest
from fourfold.plan import QuantizeConfig, QuantizePlan, plan_quantize
from fourfold.plugins import Registry
from fourfold.report.reproduce import reproduce
from fourfold.study import plan_study
from fourfold.study.spec import parse_study

SMALL = {"source": "demo", "samples": 4, "sequence_length": 32, "batch_size": 2}

RECIPES: dict[str, dict[str, Any]] = {
    "all defaults": {"quantizer": {"name": "reference", "options": {"algorithm": "max"}}, "recipe": {}},
    "the engine's gptq": {
        "quantizer": {
            "name": "reference",
            "options": {"algorithm": "gptq", "stream": True, "gptq_damping": 0.02, "expert_inputs": "layer"},
        },
        "unfuser": {"name": "reference", "options": {"calibrate_all_experts": False}},
        "recipe": {"rare_experts": "error", "min_expert_tokens": 3, "targets": "attention-bf16"},
    },
    "FP8 keys and values": {
        "quantizer": {"name": "modelopt", "options": {"algorithm": "act-headroom", "headroom_rho": 1024.0}},
        "layout": "compressed-tensors",
        "recipe": {"kv_cache": "fp8", "include": ["*.experts.*", "*.mlp.*"], "exclude": ["*.layers.0.mlp.*"]},
        "calibration": {"chat_template": True, "field": "text"},
        "seed": 5,
    },
    "weights alone": {
        "quantizer": {"name": "llmcompressor", "options": {"algorithm": "mse", "calibrate_all_experts": True}},
        "unfuser": {"name": "llmcompressor"},
        "recipe": {"scheme": "W4A16"},
    },
    "activations of attention in BF16": {
        "quantizer": {"name": "reference", "options": {"algorithm": "gptq", "gptq_sweeps": 4}},
        "recipe": {"weights_only": ["*.self_attn.*", "*.layers.0.mlp.*"]},
    },
    "rows cut at a text's end": {
        "quantizer": {"name": "modelopt", "options": {"algorithm": "gptq", "gptq_block_size": 64}},
        "unfuser": {"name": "reference", "options": {"calibrate_all_experts": True}},
        "recipe": {"exclude": ["*.layers.0.mlp.*"], "kv_cache": "fp8"},
        "calibration": {"packing": "truncate", "chat_template": True},
        "seed": 3,
    },
    "texts drawn by a seed of their own": {
        "quantizer": {"name": "reference", "options": {"algorithm": "local-hessian"}},
        "recipe": {},
        "calibration": {"seed": 11},
        "layout": "compressed-tensors",
    },
}  # fmt: skip
#: Those that only a study file can say.
BY_STUDY = {"rows cut at a text's end", "texts drawn by a seed of their own"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("reproduce") / "model")


def recorded(plan: QuantizePlan) -> Manifest:
    """The manifest that the planned run would leave, as far as it says how it was made."""
    config = plan.config
    calibration = CalibrationRecord(
        spec=config.calibration.model_dump(mode="json"), source_sha256="d" * 64, tokens_sha256="e" * 64, num_tokens=128
    )
    return manifest().model_copy(
        update={
            "layout": config.layout,
            "exporter": Component(name=config.layout),
            "recipe": config.recipe,
            "unfuser": plan.unfuser,
            "quantizer": Component(name=plan.quantizer.name, options=plan.quantizer_options.recorded()),
            "seed": config.seed,
            "calibration": calibration if plan.needs_tokens else None,
        }
    )


def planned_by_command(text: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> QuantizePlan:
    plans: list[QuantizePlan] = []

    def no_run(plan: QuantizePlan, *_: Any, **__: Any) -> Any:
        plans.append(plan)
        raise FourfoldError("planned, and that is all")

    monkeypatch.setattr("fourfold.pipeline.Pipeline", no_run)
    places = {"MODEL": str(model), "FOLDER": str(tmp_path / "out")}
    program, *arguments = [places.get(part, part) for part in shlex.split(text)]
    assert program == "fourfold"
    run = CliRunner().invoke(app, arguments)
    assert plans, run.output
    return plans[0]


def planned_by_study(text: str, model: Path, registry: Registry) -> QuantizePlan:
    plan = plan_study(parse_study(tomllib.loads(text.replace('"MODEL"', f'"{model}"'))), registry)
    (only,) = plan.plans.values()
    return only


@pytest.mark.parametrize("name", RECIPES)
def test_the_card_says_the_run_that_was(
    name: str, registry: Registry, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = RECIPES[name]
    seed = wanted.get("seed", 0)
    calibration = SMALL | {"seed": seed} | wanted.get("calibration", {})
    config = QuantizeConfig.parse(wanted | {"model": str(model), "calibration": calibration}, where="")
    before = plan_quantize(config, registry)
    text = reproduce(recorded(before), registry)
    study = re.search(r"```toml\n(.*?)```", text, re.DOTALL)
    assert (study is not None) is (name in BY_STUDY)
    command = re.search(r"```bash\n(.*?)\n```", text, re.DOTALL)
    assert command is not None
    if study:
        assert command[1] == "fourfold study run again.toml --output FOLDER"
        again = planned_by_study(study[1], model, registry)
    else:
        again = planned_by_command(command[1], model, tmp_path, monkeypatch)
    assert again.quantizer.name == before.quantizer.name
    assert again.quantizer_options == before.quantizer_options
    assert again.unfuser == before.unfuser
    assert again.config.layout == before.config.layout
    assert again.config.recipe == before.config.recipe
    assert again.config.seed == before.config.seed
    if before.needs_tokens:
        assert again.config.calibration == before.config.calibration


def test_no_default_is_spelled_out_and_text_stays_text(registry: Registry) -> None:
    made = manifest().model_copy(
        update={
            "recipe": Recipe(),
            "quantizer": Component(name="modelopt", options={"algorithm": "max", "gptq_damping": 0.01}),
        }
    )
    assert "--option" not in reproduce(made, registry)
    unknown = made.model_copy(
        update={"quantizer": Component(name="elsewhere", options={"level": "3", "words": "a b", "ratio": 0.5})}
    )
    flags = shlex.split(reproduce(unknown, registry))
    assert [flags[i + 1] for i, flag in enumerate(flags) if flag == "--option"] == [
        'level="3"', "words=a b", "ratio=0.5",
    ]  # fmt: skip


def test_input_scales_are_named_by_their_hashes(registry: Registry) -> None:
    options = {"algorithm": "max", "input_scales": {"model.safetensors": "a" * 64}}
    made = manifest().model_copy(update={"quantizer": Component(name="reference", options=options)})
    text = reproduce(made, registry)
    assert "--option input_scales=INPUT_SCALES" in text
    assert f"`INPUT_SCALES` holds `model.safetensors` (sha256 `{'a' * 64}`)." in text
