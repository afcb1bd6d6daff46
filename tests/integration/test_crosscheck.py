"""Both toolchains on one trained model, behind the same linears, with the same tokens: what agrees, and why not all.

A study on the demo cut small: every pair's weights are explained, one policy gives both toolchains' bytes, and the
activations they saw are the same to the bit, in two environments with two versions of transformers.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fourfold.artifact import Artifact
from fourfold.checkpoint.index import TensorFolder
from fourfold.models.gemma4 import LinearModule, read_gemma4
from fourfold.nvfp4 import BlockScalePolicy, quantize
from fourfold.study import PairResult, StudyResults

from .cut_demo import NUM_EXPERTS, cut_demo

BATCH_SIZE = 4
NUM_LINEARS = 2 * (3 * NUM_EXPERTS + 3) + 4 + 3  # the full layer takes its keys as values
STUDY = f"""
name = "crosscheck-small"
summary = "both toolchains on the demo model cut small"
model = "{{model}}"
compare = true

[calibration]
source = "demo"
samples = 8
sequence_length = 64
batch_size = {BATCH_SIZE}

[matrix]
unfusers = ["reference"]
quantizers = ["modelopt", "llmcompressor"]
layouts = ["modelopt", "compressed-tensors"]
"""
POLICIES = {"modelopt": BlockScalePolicy.MODELOPT, "llmcompressor": BlockScalePolicy.COMPRESSED_TENSORS}
NAMED = {
    "other-global-scale-rounding", "other-block-scale-rounding", "other-code-rounding", "other-input-scale-rounding",
    "zero-block-policy", "signed-zero", "input-scale-fallback", "reciprocal-rounding",
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cut_demo(tmp_path_factory.mktemp("cut") / "model")


@pytest.fixture(scope="module")
def output(model: Path, tmp_path_factory: pytest.TempPathFactory, cli: Callable[..., subprocess.CompletedProcess[str]]):
    folder = tmp_path_factory.mktemp("crosscheck")
    study = folder / "study.toml"
    study.write_text(STUDY.format(model=model))
    run = cli("study", "run", study, "--output", folder / "output")
    assert run.returncode == 0, run.stdout + run.stderr
    return folder / "output"


@pytest.fixture(scope="module")
def results(output: Path) -> StudyResults:
    return StudyResults.model_validate_json((output / "results.json").read_bytes())


@pytest.fixture(scope="module")
def artifacts(output: Path, results: StudyResults) -> dict[str, Artifact]:
    return {name: Artifact(output / str(_cell(results, name).artifact)) for name in POLICIES}


@pytest.fixture(scope="module")
def linears(model: Path) -> list[LinearModule]:
    return list(read_gemma4(TensorFolder(model)).linears.values())


def _cell(results: StudyResults, quantizer: str):
    return next(cell for cell in results.cells if cell.name.startswith(quantizer))


def test_every_cell_is_verified_and_as_quantized(results: StudyResults):
    assert (results.complete, results.ok) == (True, True)
    assert [(c.verified, c.findings, c.equal_to_artifact) for c in results.cells] == [(True, 0, True)] * 4


def test_every_weight_that_differs_is_explained(results: StudyResults):
    (pair,) = results.pairs
    assert isinstance(pair, PairResult)
    assert (pair.packed_weights.tensors, pair.block_scales.tensors) == (NUM_LINEARS, NUM_LINEARS)
    assert 0 < pair.packed_weights.equal < NUM_LINEARS
    assert pair.differing > 0
    assert pair.explained == pair.differing
    assert set(pair.causes) <= NAMED
    assert 0 < pair.packed_weights.differing_elements < 0.02 * pair.packed_weights.elements


@pytest.mark.parametrize("layout", ["modelopt", "compressed-tensors"])
def test_the_causes_do_not_depend_on_the_layout(layout: str, output: Path, results: StudyResults, cli_json):
    cells = [output / "checkpoints" / f"{name}-max.reference.{layout}" for name in POLICIES]
    compared = cli_json("compare", *cells)
    # Where divisors are stored, the reciprocal of ModelOpt's own number can be one step off llm-compressor's.
    assert {c: n for c, n in compared["causes"].items() if c != "reciprocal-rounding"} == {
        c: n for c, n in results.pairs[0].causes.items() if c != "reciprocal-rounding"
    }


def test_one_policy_gives_both_toolchains_bytes(model: Path, artifacts: dict[str, Artifact], linears):
    """From the same source and amax, all weights of each: so under one policy all agree, and nothing else differs."""
    source = TensorFolder(model)
    amax: dict[str, torch.Tensor] = {}
    for linear in linears:
        largest = linear.read(source).abs().max()
        amax[linear.scale_group] = torch.maximum(amax.get(linear.scale_group, largest), largest)
    agreeing = dict.fromkeys(POLICIES, 0)
    for linear in linears:
        weight = linear.read(source)
        for name, policy in POLICIES.items():
            found = artifacts[name].weight(linear.name)
            ours = quantize(weight, global_amax=amax[linear.scale_group], policy=policy)
            agreeing[name] += (
                torch.equal(found.packed_weight, ours.packed_weight)
                and torch.equal(found.block_scale.view(torch.uint8), ours.block_scale.view(torch.uint8))
                and torch.equal(found.global_scale, ours.global_scale)
            )
    assert agreeing == dict.fromkeys(POLICIES, NUM_LINEARS)


@pytest.fixture(scope="module")
def inputs(model: Path, output: Path, environments: dict[str, Path], tmp_path_factory: pytest.TempPathFactory):
    """What the linears are given in each toolchain's environment, by a pass of transformers alone."""
    (tokens,) = (output / "stages").glob("tokens-*")
    folder, seen = tmp_path_factory.mktemp("inputs"), {}
    script = Path(__file__).with_name("inputs_digest.py")
    for name in POLICIES:
        command = [environments[name], script, model, tokens, folder / f"{name}.json", str(BATCH_SIZE)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        seen[name] = json.loads((folder / f"{name}.json").read_text())
    return seen


def test_activations_are_equal_to_the_bit_in_both_environments(inputs):
    one, other = inputs["modelopt"], inputs["llmcompressor"]
    assert one["transformers"] != other["transformers"]
    assert len(one["inputs"]) == NUM_LINEARS
    assert one["inputs"] == other["inputs"]


def test_input_scales_are_each_toolchains_formula_of_that_amax(inputs, artifacts: dict[str, Artifact], linears):
    """ModelOpt: amax / 2688 in float32. compressed-tensors: 2688 / amax in BF16. Rare experts have a fallback."""
    amax: dict[str, float] = {}
    for linear in linears:
        seen = inputs["modelopt"]["inputs"][linear.name]["amax"]
        amax[linear.scale_group] = max(amax.get(linear.scale_group, 0.0), seen)
    fallbacks = {f.module for artifact in artifacts.values() for f in artifact.manifest.fallbacks}
    measured = [linear for linear in linears if linear.name not in fallbacks]
    assert len(measured) > 0.9 * NUM_LINEARS
    for linear in measured:
        largest = torch.tensor(amax[linear.scale_group])
        multiplier = artifacts["modelopt"].input_global_scale(linear.name)
        assert multiplier is not None
        assert torch.equal(multiplier, largest / torch.tensor(2688.0)), linear.name
        divisor = (2688 / largest.bfloat16()).float()
        theirs = artifacts["llmcompressor"].input_global_scale(linear.name)
        assert theirs is not None
        assert torch.equal(theirs, divisor.reciprocal()), linear.name
