"""What convert refuses: each message by its text, nothing left behind."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fourfold.artifact import Artifact
from fourfold.checkpoint.layouts import COMPRESSED_TENSORS
from fourfold.config import Recipe
from fourfold.errors import CheckpointError, ConfigError, OutputError, UnknownNameError
from fourfold.export import write_checkpoint
from fourfold.hookspecs import hookimpl
from fourfold.manifest import sha256_files
from fourfold.plugins import Entry, Registry, build_plugin_manager
from fourfold.progress import NoProgress

from .conftest import BASE, DOWN, LAYOUTS, MakeCheckpoint
from .conversion import BACK, convert


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("value", [0.0, -0.5, math.inf, math.nan, 1e-40, 3e38])
@pytest.mark.parametrize("part", ["global", "input"])
def test_scales_that_cannot_be_turned(
    checkpoint: MakeCheckpoint, registry: Registry, tmp_path: Path, layout: str, value: float, part: str
) -> None:
    keys = {"global": "weight_scale_2", "input": "input_scale"}
    if layout == "compressed-tensors":
        keys = {"global": "weight_global_scale", "input": "input_global_scale"}
    name = f"{DOWN}.{keys[part]}"
    path = checkpoint(layout, edit=lambda t: t[name].fill_(value))
    bad = "not positive and finite" if not value > 0 or math.isinf(value) else "denormal, or its reciprocal is"
    with pytest.raises(CheckpointError, match=rf"{name} is .+: {bad}; quantize or calibrate this module again"):
        convert(path, BACK[layout], tmp_path / "out", registry)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan])
def test_bad_block_scales(checkpoint: MakeCheckpoint, registry: Registry, tmp_path: Path, value: float) -> None:
    name = f"{BASE}.mlp.down_proj.weight_scale"

    def plant(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name][4, 2] = value

    path = checkpoint("modelopt", edit=plant)
    with pytest.raises(
        CheckpointError, match=rf"{name} holds (-1|0|nan) at row 4, block 2 \(1 such\); a block scale must"
    ):
        convert(path, "compressed-tensors", tmp_path / "out", registry)
    assert not [p for p in tmp_path.iterdir() if "out" in p.name]


def test_refusals(checkpoint: MakeCheckpoint, registry: Registry, tmp_path: Path, source: Path, artifacts) -> None:
    path = checkpoint("modelopt")
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match=r"modelopt-0: has layout modelopt already; there is nothing to convert"):
        convert(path, "modelopt", out, registry)
    with pytest.raises(
        UnknownNameError, match=r"unknown layout 'gguf'; known: canonical, compressed-tensors, modelopt"
    ):
        convert(path, "gguf", out, registry)
    with pytest.raises(UnknownNameError, match=r"unknown exporter 'compressed-tensors'; known: none"):
        convert(path, "compressed-tensors", out, Registry(build_plugin_manager([])))
    with pytest.raises(CheckpointError, match=r"source\d: holds no NVFP4 global scales"):
        convert(source, "modelopt", out, registry)
    with pytest.raises(
        CheckpointError, match=r"is an artifact, not a checkpoint; fourfold quantize --layout writes one"
    ):
        convert(artifacts(Recipe()).path, "modelopt", out, registry)
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine").write_text("")
    with pytest.raises(OutputError, match=r"full: output folder is not empty"):
        convert(path, "compressed-tensors", full, registry)
    assert [p.name for p in full.iterdir()] == ["mine"]
    assert not out.exists()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda t: t.pop(f"{DOWN}.input_scale"),
            rf"{DOWN}\.input_scale is missing, though 18 of 19 modules have one",
        ),
        (lambda t: t.pop(f"{DOWN}.weight"), rf"tensor {DOWN}\.weight is missing"),
        (
            lambda t: t.update({f"{BASE}.router.proj.weight": t[f"{BASE}.router.proj.weight"].to(torch.float8_e4m3fn)}),
            r"router\.proj\.weight is stored as F8_E4M3 and is no part of an NVFP4 weight",
        ),
        (
            lambda t: t.update({f"{DOWN}.pre_quant_scale": torch.ones(16)}),
            rf"{DOWN}\.pre_quant_scale has no place in another layout",
        ),
        (
            lambda t: t.update({f"{BASE}.router.proj.weight_scale": torch.ones(16)}),
            r"router\.proj\.weight_scale has no place in another layout",
        ),
    ],
)
def test_tensors_that_cannot_travel(
    checkpoint: MakeCheckpoint, registry: Registry, tmp_path: Path, edit: object, message: str
) -> None:
    path = checkpoint("modelopt", edit=edit)
    with pytest.raises(CheckpointError, match=message):
        convert(path, "compressed-tensors", tmp_path / "out", registry)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("module", [f"{BASE}.self_attn.o_proj", DOWN])
def test_a_lost_input_scale_is_not_one_of_weights_alone(
    checkpoint: MakeCheckpoint, registry: Registry, tmp_path: Path, module: str
) -> None:
    """Where the config says of the module that it has one."""
    path = checkpoint("modelopt", weights_only=("*.mlp.*",), edit=lambda t: t.pop(f"{module}.input_scale"))
    message = rf"{module}\.input_scale is missing, though 15 of 19 modules have one"
    with pytest.raises(CheckpointError, match=message):
        convert(path, "compressed-tensors", tmp_path / "out", registry)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_input_scales_lost_is_not_weights_alone(
    checkpoint: MakeCheckpoint, registry: Registry, tmp_path: Path, layout: str
) -> None:
    def lose(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if name.endswith((".input_scale", ".input_global_scale"))]:
            del tensors[name]

    message = r"\.input_(global_)?scale is missing, though the config does not state W4A16; .* calibrate this module"
    with pytest.raises(CheckpointError, match=message):
        convert(checkpoint(layout, edit=lose), BACK[layout], tmp_path / "out", registry)
    assert not (tmp_path / "out").exists()


def test_one_expert_of_weights_alone_is_refused(checkpoint: MakeCheckpoint, registry: Registry, tmp_path: Path) -> None:
    path = checkpoint("modelopt", weights_only=("*.mlp.*",), edit=lambda t: t.pop(f"{DOWN}.input_scale"))
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"]["quantized_layers"][DOWN]["quant_algo"] = "W4A16_NVFP4"
    (path / "config.json").write_text(json.dumps(config))
    message = rf"{DOWN} is of weights alone and others of its layer's experts are not; a server loads them as one"
    with pytest.raises(CheckpointError, match=message):
        convert(path, "compressed-tensors", tmp_path / "out", registry)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("shape", "dtype", "text"),
    [((2, 1, 1), torch.float32, "F32 [2, 1, 1]"), ((0,), torch.float32, "F32 [0]"), ((), torch.int32, "I32 []")],
)
def test_kv_scales_that_are_not_one_number(
    checkpoint: MakeCheckpoint, registry: Registry, tmp_path: Path, layout: str, shape, dtype: torch.dtype, text: str
) -> None:
    name = f"{BASE}.self_attn.{'k_proj.' if layout == 'modelopt' else ''}k_scale"
    path = checkpoint(layout, kv_cache="fp8", edit=lambda t: t.update({name: torch.ones(shape, dtype=dtype)}))
    message = re.escape(f"{name} is {text}; a KV scale is one number in F32, BF16 or F16: calibrate the KV cache again")
    with pytest.raises(CheckpointError, match=message):
        convert(path, BACK[layout], tmp_path / "out", registry)
    assert not (tmp_path / "out").exists()


def test_unknown_kv_cache(checkpoint: MakeCheckpoint, registry: Registry, tmp_path: Path) -> None:
    path = checkpoint("modelopt")
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"]["kv_cache_scheme"] = {"num_bits": 4, "type": "float"}
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"KV cache in float4; only FP8 is known"):
        convert(path, "compressed-tensors", tmp_path / "out", registry)


def test_manifest_of_another_checkpoint(
    checkpoint: MakeCheckpoint, registry: Registry, tmp_path: Path, artifacts
) -> None:
    path = checkpoint("modelopt")
    files = sha256_files(path)
    artifacts(Recipe(targets="experts-only")).manifest.model_copy(update={"files": files}).write(path)
    with pytest.raises(
        CheckpointError, match=r"mlp\.down_proj is not in the manifest \(7 such\); manifest\.json is not"
    ):
        convert(path, "compressed-tensors", tmp_path / "out", registry)


@pytest.mark.parametrize("fault", ["changed", "gone", "a folder"])
def test_files_that_are_not_what_the_manifest_recorded(
    checkpoint: MakeCheckpoint, registry: Registry, tmp_path: Path, artifacts, fault: str
) -> None:
    path = checkpoint("modelopt")
    side_file = path / "tokenizer.json"
    side_file.write_text("{}")
    artifacts(Recipe()).manifest.model_copy(update={"files": sha256_files(path)}).write(path)
    if fault == "changed":
        side_file.write_text("{ }")
        message = r"tokenizer\.json: changed since manifest\.json was written \(sha256 \w{12}, recorded \w{12}\); make"
    else:
        side_file.unlink()
        message = r"tokenizer\.json: manifest\.json lists it; No such file"
    if fault == "a folder":
        side_file.mkdir()
        message = r"tokenizer\.json: manifest\.json lists it; "
    with pytest.raises(CheckpointError, match=message):
        convert(path, "compressed-tensors", tmp_path / "out", registry)
    assert not (tmp_path / "out").exists()


class LosingExporter:
    """Loses a tensor, as a careless plugin might."""

    def __init__(self, options: object) -> None:
        pass

    def export(self, artifact: Artifact, destination: Path, progress: NoProgress) -> None:
        write_checkpoint(artifact, destination, COMPRESSED_TENSORS, {}, progress)
        tensors = load_file(destination / "model.safetensors")
        del tensors[f"{BASE}.router.proj.weight"]
        save_file(tensors, destination / "model.safetensors")


def test_an_exporter_that_loses_a_tensor(checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    class Plugin:
        @hookimpl
        def fourfold_register_exporters(self) -> list[Entry]:
            return [Entry(name="compressed-tensors", summary="", implementation=f"{__name__}:LosingExporter")]

    registry = Registry(build_plugin_manager([Plugin()]))
    with pytest.raises(
        CheckpointError, match=rf"the exporter lost or changed {BASE}\.router\.proj\.weight BF16 \[4, 32\]"
    ):
        convert(checkpoint("modelopt"), "compressed-tensors", tmp_path / "out", registry)
    assert not (tmp_path / "out").exists()
