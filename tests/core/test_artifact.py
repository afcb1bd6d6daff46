"""What an artifact refuses to hold: nothing is lost, doubled or wrong in silence."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from fourfold.artifact import Artifact, ArtifactWriter
from fourfold.checkpoint.index import TensorFolder
from fourfold.config import Options, Recipe, Scheme
from fourfold.demo import model_path
from fourfold.errors import ConfigError, QuantizationError
from fourfold.interfaces.quantizer import QuantizeJob
from fourfold.manifest import Fate
from fourfold.models.gemma4 import read_gemma4
from fourfold.nvfp4 import quantize
from fourfold.reference.unfuser import ReferenceUnfuser
from fourfold.targets import resolve_targets

FACTS = {
    "source_files": {}, "unfuser": {"name": "u"}, "quantizer": {"name": "q"}, "calibration": None, "packages": {},
}  # fmt: skip


@pytest.fixture(scope="module")
def job() -> QuantizeJob:
    """Dense MLPs of the demo alone, so that a whole artifact takes a second."""
    source = TensorFolder(model_path())
    gemma = read_gemma4(source)
    recipe = Recipe(scheme=Scheme.W4A4, include=("*.mlp.*",))
    return QuantizeJob(
        model_path=model_path(), source=source, gemma=gemma, targets=resolve_targets(gemma, recipe), recipe=recipe,
        tokens=None, batch_size=1, unfuser_name="u", unfuser=ReferenceUnfuser(Options()), device="cpu", seed=0,
    )  # fmt: skip


@pytest.fixture
def writer(job, tmp_path) -> ArtifactWriter:
    return ArtifactWriter(tmp_path, job)


def weight(job, module):
    return quantize(module.read(job.source))


@pytest.mark.parametrize("left_out", [".0.experts.3.", ".0.experts.3.up_proj", ".0.self_attn.k_proj"])
def test_a_job_made_by_hand_that_leaves_out_a_part(job, tmp_path, left_out):
    """Of a fused tensor it would be lost; of a scale group it would have another scale than a server uses."""
    targets = tuple(module for module in job.gemma.linears.values() if left_out not in module.name)
    with pytest.raises(ConfigError, match=r"\S+ is left out while others of .* quantize all of them or none"):
        ArtifactWriter(tmp_path, dataclasses.replace(job, targets=targets))


def test_round_trip_and_fates(job, writer, tmp_path):
    for module in job.targets:
        writer.add_weight(module, weight(job, module), 0.25)
    writer.record_expert_tokens(0, [3, 0, 5])
    writer.record_fallback("m", "layer-max", "no tokens")
    manifest = writer.finish(FACTS)
    artifact = Artifact(tmp_path)
    assert artifact.manifest == manifest
    for module in job.targets:
        assert torch.equal(artifact.weight(module.name).packed_weight, weight(job, module).packed_weight)
        assert artifact.input_global_scale(module.name) == torch.tensor(0.25)
    assert {name for name, fate in manifest.tensors.items() if fate.fate is Fate.QUANTIZED} == {
        module.tensor for module in job.targets
    }
    assert set(manifest.tensors) == set(job.source.tensors)
    for name in artifact.kept():
        assert torch.equal(artifact.tensors.read(name), job.source.read(name)), name
    assert set(artifact.kept()) == {n for n, f in manifest.tensors.items() if f.fate is Fate.KEPT}


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_a_scale_that_is_no_scale_is_refused(job, writer, value):
    with pytest.raises(QuantizationError, match=r"input_global_scale: .* is no scale; it must be finite and positive"):
        writer.add_weight(job.targets[0], weight(job, job.targets[0]), value)


def test_a_target_left_out_is_named(job, writer):
    for module in job.targets[1:]:
        writer.add_weight(module, weight(job, module), 1.0)
    with pytest.raises(QuantizationError, match=rf"left out {job.targets[0].name} \(1 missing\)"):
        writer.finish(FACTS)


def test_twice_untargeted_misshapen_and_scaleless_are_refused(job, writer):
    first = job.targets[0]
    stranger = next(m for m in job.gemma.linears.values() if m.projection == "q_proj")
    with pytest.raises(QuantizationError, match=r"scheme W4A4 needs one: input_global_scale"):
        writer.add_weight(first, weight(job, first), None)
    with pytest.raises(QuantizationError, match=r"shape \[\d+, \d+\], expected \[\d+, \d+\]"):
        writer.add_weight(first, quantize(torch.ones(3, 16)), 1.0)
    writer.add_weight(first, weight(job, first), 1.0)
    with pytest.raises(QuantizationError, match="was written twice"):
        writer.add_weight(first, weight(job, first), 1.0)
    with pytest.raises(QuantizationError, match="though it is no target"):
        writer.add_weight(stranger, weight(job, stranger), 1.0)


def test_a_divisor_is_kept_only_where_no_reciprocal_gives_it_back(job, writer):
    exact, inexact = torch.tensor(4.0), torch.tensor(1.9921875)
    assert not torch.equal(inexact.reciprocal().reciprocal(), inexact)
    for module, divisor in zip(job.targets[:2], (exact, inexact), strict=True):
        writer.add_weight(module, weight(job, module), divisor.reciprocal(), input_encode_scale=divisor)
    stored = [name for name in writer._shards._pending if name.endswith("encode_scale")]
    assert stored == [f"{job.targets[1].name}.input_global_encode_scale"]
