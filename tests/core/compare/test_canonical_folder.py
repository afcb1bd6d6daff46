"""Any layout reads as the artifact it came from, and a linear is known by its name alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from fourfold.checkpoint.canonical import CanonicalFolder
from fourfold.checkpoint.index import TensorFolder
from fourfold.compare.linears import same_bytes
from fourfold.errors import CheckpointError
from fourfold.models.gemma4 import fused_linears, layer_of, linear_module, read_gemma4

from .builders import DOWN, GATE, PREFIX
from .test_compare_causes import edited


@pytest.mark.parametrize("layout", ["canonical", "modelopt", "compressed-tensors"])
def test_reads_as_the_artifact(plain: dict[str, Path], layout: str) -> None:
    artifact, folder = TensorFolder(plain["canonical"]), CanonicalFolder(plain[layout])
    assert folder.layout.name == layout
    for entry in artifact:
        if entry.name.endswith("encode_scale"):
            continue
        ours = folder.entry(entry.name)
        assert (ours.dtype, ours.shape) == (entry.dtype, entry.shape)
        tensor, expected = folder.read(entry.name), artifact.read(entry.name)
        if layout == "compressed-tensors" and entry.name.endswith("global_scale"):
            divisor = folder.read(entry.name.replace("global_scale", "global_encode_scale"))
            assert torch.equal(divisor, expected.reciprocal())
            assert torch.equal(tensor, divisor.reciprocal())
        else:
            assert same_bytes(tensor, expected)
    extra = {e.name for e in folder} - {e.name for e in artifact}
    assert all(name.endswith("encode_scale") for name in extra)
    assert bool(extra) is (layout == "compressed-tensors")
    assert folder.stored_name(f"{GATE}.block_scale").endswith(
        "block_scale" if layout == "canonical" else "weight_scale"
    )


def test_slices_are_parts(plain: dict[str, Path]) -> None:
    folder = CanonicalFolder(plain["compressed-tensors"])
    name = f"{GATE}.packed_weight"
    assert torch.equal(folder.read(name, (slice(3, 9),)), folder.read(name)[3:9])


def test_two_tensors_of_one_name(plain: dict[str, Path], tmp_path: Path) -> None:
    clash = f"{GATE}.packed_weight"
    folder = edited(plain["modelopt"], tmp_path / "clash", lambda t: t.update({clash: t[f"{GATE}.weight"].clone()}))
    with pytest.raises(CheckpointError, match=rf"{GATE}\.\w+ and {GATE}\.\w+ are both {clash}"):
        CanonicalFolder(folder)


def test_a_linear_by_its_name(source: Path) -> None:
    folder = TensorFolder(source)
    for linear in read_gemma4(folder).linears.values():
        named = linear_module(linear.name, linear.shape)
        assert named is not None
        assert dataclasses.replace(linear, tensor=named.tensor, slices=()) == named
        if linear.slices:
            assert linear in fused_linears(linear.tensor, folder.entry(linear.tensor).shape)
    for name in (f"{PREFIX}.0.router.proj", "lm_head", "model.vision_tower.encoder.layers.0.self_attn.q_proj.linear"):
        assert linear_module(name, (4, 4)) is None
    assert linear_module(DOWN, (4,)) is None
    assert fused_linears(f"{DOWN}.weight", (4, 4)) == ()
    assert (layer_of(DOWN), layer_of("model.vision_tower.encoder.layers.0.mlp.up_proj.weight")) == (1, None)
