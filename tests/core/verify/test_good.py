"""Good checkpoints raise nothing, and every rule that applies has looked at something."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fourfold.checkpoint.index import is_side_file
from fourfold.checkpoint.layouts import COMPRESSED_TENSORS, MODELOPT
from fourfold.config import KVCache, Scheme
from fourfold.models.resolve import resolve_model
from fourfold.nvfp4 import BlockScalePolicy
from fourfold.verify import verify_checkpoint
from fourfold.verify.folder import read_folder
from fourfold.verify.sidefiles import file_difference
from fourfold.verify.source_config import config_differences

from .good_checkpoints import EXPERTS, LAYERS, TEXT, Variant
from .planting_resaved import resave_all
from .planting_transformed import DOWN, UP, record_transformed, smooth

LAYOUTS = (MODELOPT.name, COMPRESSED_TENSORS.name)
GOOD = [
    variant
    for layout in LAYOUTS
    for variant in (
        Variant(layout),
        Variant(layout, scheme=Scheme.W4A16),
        Variant(layout, kv_cache=KVCache.FP8),
        Variant(layout, sharded=True),
        Variant(layout, targets="experts-only"),
        Variant(layout, targets="attention-bf16", scheme=Scheme.W4A16, kv_cache=KVCache.FP8, sharded=True),
        Variant(layout, targets="dense-mlp-bf16", policy=BlockScalePolicy.MODELOPT),
        Variant(layout, policy=BlockScalePolicy.COMPRESSED_TENSORS),
        Variant(layout, exclude=(f"{TEXT}.0.experts.*",)),
        Variant(layout, exclude=("*.self_attn.[qkv]_proj",)),
        Variant(layout, headroom=True),
        Variant(layout, weights_only=("*.self_attn.*",), sharded=True),
        Variant(layout, weights_only=("*.experts.*", "*.mlp.*")),
    )
]


@pytest.mark.parametrize("variant", GOOD, ids=lambda v: v.name)
def test_good_checkpoint_raises_nothing(variant: Variant, good: Callable[[Variant], Path], source: Path) -> None:
    for given in (source, None):
        report = verify_checkpoint(good(variant), source=given)
        assert report.findings == ()
        assert report.ok
        assert (report.layout, report.scheme) == (
            variant.layout,
            "W4A4 + W4A16" if variant.weights_only else variant.scheme,
        )


def test_modelopts_own_config_of_two_schemes_raises_nothing(editable, source: Path) -> None:
    """It lists what is quantized, and neither what is not nor the size of groups."""
    checkpoint = editable(Variant(MODELOPT.name, weights_only=("*.self_attn.*",)))
    checkpoint.section["ignore"] = []
    for key in ("exclude_modules", "group_size"):
        del checkpoint.hf["quantization"][key]
    report = verify_checkpoint(checkpoint.save(), source=source)
    assert report.findings == ()
    assert report.checked["FF106"] > 0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_factors_moved_between_two_weights_raise_nothing(layout: str, editable, source: Path) -> None:
    checkpoint = editable(Variant(layout), manifest=True)
    smooth(checkpoint, source)
    record_transformed(UP, DOWN)(checkpoint.save())
    report = verify_checkpoint(checkpoint.folder, source=source)
    assert report.findings == ()
    assert (report.num_transformed, report.checked["FF099"]) == (2, 2)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_kv_scales_as_llm_compressor_stores_them_raise_nothing(layout: str, editable) -> None:
    """BF16 [1]."""
    checkpoint = editable(Variant(layout, kv_cache=KVCache.FP8))
    for name in [name for name in checkpoint.tensors if name.endswith(("k_scale", "v_scale"))]:
        checkpoint.tensors[name] = checkpoint.tensors[name].reshape(1).to(torch.bfloat16)
    report = verify_checkpoint(checkpoint.save())
    assert report.findings == ()
    assert report.checked["FF064"] == 2 * LAYERS


@pytest.mark.parametrize("layout", LAYOUTS)
def test_files_that_another_tool_saved_raise_nothing(layout: str, editable, source: Path) -> None:
    checkpoint = editable(Variant(layout))
    resave_all(checkpoint.folder)
    for given in (source, None):
        assert verify_checkpoint(checkpoint.folder, source=given).findings == ()


def test_transformers_own_save_of_the_demo_raises_nothing(tmp_path: Path) -> None:
    """Config, processor and tokenizer, loaded and saved: 19 keys and 2 files are spelled otherwise."""
    from transformers import AutoConfig, AutoProcessor

    demo = resolve_model("demo")
    AutoConfig.from_pretrained(demo).save_pretrained(tmp_path)
    AutoProcessor.from_pretrained(demo).save_pretrained(tmp_path)
    config, saved = (json.loads((folder / "config.json").read_text(encoding="utf-8")) for folder in (demo, tmp_path))
    assert saved != config
    assert list(config_differences(saved, config)) == list(config_differences(config, saved)) == []
    saved["text_config"]["per_layer_config"]["2"]["head_dim"] = 32
    assert list(config_differences(saved, config)) == [("text_config.per_layer_config.2.head_dim", 32, 64)]
    files = [read_folder(folder) for folder in (tmp_path, demo)]
    names = [name for name in files[0].files if is_side_file(name)]
    assert len(names) == 4
    assert [file_difference(*files, name) for name in names] == [None] * 4


@pytest.mark.parametrize("layout", LAYOUTS)
def test_experts_that_a_recipe_leaves_out_raise_nothing(
    layout: str, good: Callable[[Variant], Path], source: Path
) -> None:
    """Only a manifest's recipe tells them from experts that a quantizer walked past."""
    folder = good(Variant(layout, exclude=("*.experts.*",)))
    assert verify_checkpoint(folder, source=source).findings == ()
    manifest = folder / "manifest.json"
    written = manifest.read_text(encoding="utf-8")
    try:
        record = json.loads(written)
        record["recipe"]["exclude"] = []
        manifest.write_text(json.dumps(record), encoding="utf-8")
        assert "FF020" in {finding.rule for finding in verify_checkpoint(folder, source=source).findings}
        manifest.unlink()
        assert "FF020" in {finding.rule for finding in verify_checkpoint(folder, source=source).findings}
    finally:
        manifest.write_text(written, encoding="utf-8")


def test_null_says_nothing_of_layers(editable) -> None:
    """``per_layer_config`` that is null: the two numbers for all layers of full attention hold."""
    checkpoint = editable(Variant(MODELOPT.name))
    path = checkpoint.save() / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["text_config"] |= {"per_layer_config": None, "global_head_dim": 32, "num_global_key_value_heads": 1}
    path.write_text(json.dumps(config), encoding="utf-8")
    assert verify_checkpoint(checkpoint.folder).findings == ()


def test_every_tensor_is_read_once(good: Callable[[Variant], Path], source: Path) -> None:
    for layout in LAYOUTS:
        folder = good(Variant(layout, sharded=True))
        report = verify_checkpoint(folder, source=source)
        header = sum(8 + int.from_bytes(p.open("rb").read(8), "little") for p in folder.glob("*.safetensors"))
        assert report.bytes_read == sum(p.stat().st_size for p in folder.glob("*.safetensors")) - header


def test_counts_say_what_was_looked_at(good: Callable[[Variant], Path], source: Path) -> None:
    report = verify_checkpoint(good(Variant(MODELOPT.name)), source=source)
    matrices = LAYERS * EXPERTS * 3
    assert report.checked["FF020"] == matrices
    assert report.checked["FF081"] == matrices + 7 * 2 + 6
    assert report.checked["FF062"] == LAYERS * (EXPERTS + 2)
    assert report.checked["FF029"] == LAYERS
    assert report.skipped == {}


def test_without_source_and_manifest_the_report_says_what_was_skipped(editable) -> None:
    report = verify_checkpoint(editable(Variant(MODELOPT.name)).folder)
    assert report.ok
    assert report.skipped["FF080"] == "no source model given"
    assert report.skipped["FF131"] == "no manifest.json beside the checkpoint"
    assert report.checked["FF020"] == LAYERS * EXPERTS * 3


def test_rules_that_can_look_at_nothing_here_are_known(good: Callable[[Variant], Path], source: Path) -> None:
    """Over all good checkpoints, every rule has looked at something; an empty check would be no check."""
    looked: set[str] = set()
    known: set[str] = set()
    for variant in GOOD:
        report = verify_checkpoint(good(variant), source=source)
        looked |= {rule for rule, number in report.checked.items() if number}
        known |= report.checked.keys()
    # Fallbacks and transformed weights are what these checkpoints do not have.
    assert known - looked == {"FF099", "FF135"}
