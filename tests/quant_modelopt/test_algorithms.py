"""Every algorithm on a CPU: it ends, differs from ``max``, and lowers the error it claims to lower.

Errors are computed here by Fourfold's codec from the artifact, on inputs of the BF16 model; nothing the algorithm
reported about itself is used. Shape letters: T tokens, O out features, K in features, G = K/16 blocks.
"""

from __future__ import annotations

import pytest
import torch

from fourfold.models.gemma4 import LinearModule, read_gemma4
from fourfold.nvfp4 import E2M1_MAX, block_amax, fake_quantize_activations, quantize, round_to_e2m1

from .conftest import Result, Runs
from .jobs import ALGORITHMS, ATTENTION_OUT, DENSE_DOWN, FIRST_INPUT

FOUR_OVER_SIX_DIVISOR = 6 * 256
#: K and V are projected from what Q is projected from.
SAME_INPUT = {FIRST_INPUT.replace("q_proj", other): FIRST_INPUT for other in ("k_proj", "v_proj")}
WEIGHT_ALGORITHMS = [name for name in ALGORITHMS if name != "act-headroom"]


def modules(runs: Runs) -> list[LinearModule]:
    return list(read_gemma4(runs.model).linears.values())


def original(runs: Runs, name: str) -> torch.Tensor:
    """A module's BF16 weight, as float32 [O, K]."""
    return read_gemma4(runs.model).linears[name].read(runs.model).float()


def decoded(result: Result, name: str) -> torch.Tensor:
    return result.artifact.weight(name).dequantize()


def squared_error(result: Result, runs: Runs, name: str) -> float:
    return (decoded(result, name) - original(runs, name)).double().square().sum().item()


def output_error(result: Result, runs: Runs, name: str) -> float:
    """Squared error of the module's output on inputs quantized as a server does."""
    scale = result.artifact.input_global_scale(name)
    assert scale is not None
    x = runs["bf16"].inputs[SAME_INPUT.get(name, name)]
    served = fake_quantize_activations(x, scale).double()
    return (served @ (decoded(result, name) - original(runs, name)).double().T).square().sum().item()


@pytest.mark.parametrize("name", WEIGHT_ALGORITHMS)
def test_weights_differ_from_max(runs: Runs, name: str) -> None:
    targets = modules(runs)
    assert runs[name].artifact.manifest.quantized_modules == runs["reference"].artifact.manifest.quantized_modules
    changed = sum(not torch.equal(decoded(runs[name], m.name), decoded(runs["reference"], m.name)) for m in targets)
    assert changed > len(targets) / 2


@pytest.mark.parametrize("name", ["mse", "four-over-six"])
def test_search_lowers_every_matrix_error(runs: Runs, name: str) -> None:
    # Four-over-six has a global scale of its own, so a matrix may lose where the grid falls badly; their sum may not.
    ours = [squared_error(runs[name], runs, m.name) for m in modules(runs)]
    plain = [squared_error(runs["reference"], runs, m.name) for m in modules(runs)]
    assert sum(ours) < 0.95 * sum(plain)
    if name == "mse":
        assert all(a <= b for a, b in zip(ours, plain, strict=True))


@pytest.mark.parametrize("name", [FIRST_INPUT, "model.language_model.layers.1.experts.7.up_proj"])
def test_mse_finds_the_best_of_all_scales(runs: Runs, name: str) -> None:
    """Brute force over the 126 positive FP8 values, block by block."""
    found, weight = runs["mse"].artifact.weight(name), original(runs, name)
    blocks = weight.reshape(-1, 16)
    candidates = torch.arange(1, 127, dtype=torch.uint8).view(torch.float8_e4m3fn).float() * found.global_scale
    errors = torch.stack([(round_to_e2m1(blocks / s) * s - blocks).square().sum(-1) for s in candidates])
    stored = (decoded(runs["mse"], name).reshape(-1, 16) - blocks).square().sum(-1)
    torch.testing.assert_close(stored, errors.amin(0), rtol=1e-5, atol=0)


def test_mse_behind_the_fused_wrapper_finds_the_same(runs: Runs) -> None:
    """Gate and up share a quantizer there, and a scale group here: the weights come out equal."""
    for module in modules(runs):
        one, other = (runs[n].artifact.weight(module.name) for n in ("mse", "mse-fused"))
        assert torch.equal(one.packed_weight, other.packed_weight), module.name
        assert torch.equal(one.block_scale.view(torch.uint8), other.block_scale.view(torch.uint8)), module.name


@pytest.mark.parametrize("name", [FIRST_INPUT, "model.language_model.layers.0.experts.2.down_proj"])
def test_four_over_six_takes_the_better_of_two_scales(runs: Runs, name: str) -> None:
    found, weight = runs["four-over-six"].artifact.weight(name), original(runs, name)
    group = [m for m in modules(runs) if m.scale_group == read_gemma4(runs.model).linears[name].scale_group]
    amax = max(original(runs, m.name).abs().max() for m in group)
    assert torch.equal(found.global_scale, amax / FOUR_OVER_SIX_DIVISOR)
    candidates = []
    for largest in (E2M1_MAX, 4.0):
        scale = (block_amax(weight) / largest / found.global_scale).clamp(2**-9, 448).to(torch.float8_e4m3fn)
        candidates.append(quantize(weight, global_scale=found.global_scale, block_scale=scale))
    errors = [(c.dequantize() - weight).square().reshape(-1, 16).sum(-1) for c in candidates]
    stored = (found.dequantize() - weight).square().reshape(-1, 16).sum(-1)
    torch.testing.assert_close(stored, torch.minimum(*errors), rtol=1e-4, atol=0)
    assert (errors[0] < errors[1]).any()
    assert (errors[1] < errors[0]).any()


def test_local_hessian_lowers_the_weighted_error(runs: Runs) -> None:
    """Inputs of the first projections are the same in the BF16 model, as nothing before them is quantized."""
    x = runs["bf16"].inputs[FIRST_INPUT].double()
    blocks = x.reshape(len(x), -1, 16)
    hessian = torch.einsum("tgi,tgj->gij", blocks, blocks)

    def weighted(result: Result) -> float:
        error = (decoded(result, FIRST_INPUT) - original(runs, FIRST_INPUT)).double()
        split = error.reshape(len(error), -1, 16)
        return torch.einsum("ogi,gij,ogj->", split, hessian, split).item()

    assert weighted(runs["local-hessian"]) < weighted(runs["mse"]) < weighted(runs["reference"])


@pytest.mark.parametrize("projection", ["q_proj", "k_proj", "v_proj"])
def test_gptq_lowers_the_output_error(runs: Runs, projection: str) -> None:
    name = FIRST_INPUT.replace("q_proj", projection)
    assert output_error(runs["gptq"], runs, name) < 0.9 * output_error(runs["reference"], runs, name)


def test_gptq_reaches_experts(runs: Runs) -> None:
    """It changes their codes and leaves their scales, which come from max."""
    name = "model.language_model.layers.1.experts.4.gate_proj"
    ours, plain = runs["gptq"].artifact.weight(name), runs["reference"].artifact.weight(name)
    assert torch.equal(ours.global_scale, plain.global_scale)
    assert not torch.equal(ours.packed_weight, plain.packed_weight)


def test_gptq_writes_into_the_fused_storage(runs: Runs) -> None:
    """ModelOpt alone gives every module a new tensor, which would hold all experts twice."""
    facts = runs["storage"].facts
    assert facts["views"] == facts["experts"] == 2 * 16 * 3


def test_gptq_passes_by_experts_behind_the_fused_wrapper(runs: Runs) -> None:
    """Why such a job is refused: ModelOpt reports nothing, changes dense weights, and no expert's."""
    changed = runs["skipped"].facts["changed"]
    assert any(".self_attn.q_proj." in name for name in changed)
    assert not any(".experts." in name for name in changed)


@pytest.mark.parametrize("name", [ATTENTION_OUT, DENSE_DOWN])
def test_awq_clip_takes_the_clip_of_least_output_error(runs: Runs, name: str) -> None:
    """Out of amax x (0.5, 0.55, ... 1); neither module shares its scale, and its calibration pass is BF16."""
    ours, plain = runs["awq-clip"].artifact.weight(name), runs["reference"].artifact.weight(name)
    ratio = (ours.global_scale / plain.global_scale).item()
    assert any(abs(ratio - (0.5 + 0.05 * step)) < 4e-3 for step in range(11)), ratio
    assert output_error(runs["awq-clip"], runs, name) <= output_error(runs["reference"], runs, name)


def test_awq_clip_clips(runs: Runs) -> None:
    clipped = sum(
        (runs["awq-clip"].artifact.weight(m.name).global_scale < runs["reference"].artifact.weight(m.name).global_scale)
        for m in modules(runs)
    )
    assert clipped > 0


def test_act_headroom_changes_input_scales_alone(runs: Runs) -> None:
    for module in modules(runs):
        ours, plain = runs["act-headroom"].artifact, runs["reference"].artifact
        assert torch.equal(decoded(runs["act-headroom"], module.name), decoded(runs["reference"], module.name))
        larger, smaller = ours.input_global_scale(module.name), plain.input_global_scale(module.name)
        assert larger is not None, module.name
        assert smaller is not None, module.name
        assert larger > smaller, module.name


def test_act_headroom_follows_its_formula(runs: Runs) -> None:
    """amax = rho x 1st percentile of the block amaxes, out of a histogram with 512 bins over 80 octaves."""
    amaxes = block_amax(runs["bf16"].inputs[FIRST_INPUT]).float().flatten()
    anchor = amaxes[amaxes > 0].quantile(0.01)
    scale = runs["act-headroom"].artifact.input_global_scale(FIRST_INPUT)
    assert scale is not None
    half_bin = 2 ** (80 / 512)
    assert 1 / half_bin <= (scale * 6 * 448 / (16384 * anchor)).item() <= half_bin
