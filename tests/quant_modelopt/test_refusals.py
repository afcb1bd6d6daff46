"""What is refused, by the text of its message: before anything starts where that is possible."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fourfold.config import Options, Recipe
from fourfold.errors import ConfigError, ModelError
from fourfold_modelopt.options import ModelOptOptions
from fourfold_modelopt.unfuser import ModelOptUnfuser

from .conftest import Runs

W4A4, W4A16 = Recipe(), Recipe.parse({"scheme": "W4A16"}, where="recipe")


@pytest.mark.parametrize(
    ("algorithm", "reason"),
    [
        ("awq-lite", "pre_quant_scale before every expert's input"),
        ("awq-full", "awq-clip is its servable half"),
        ("svdquant", "low-rank branch"),
    ],
)
def test_algorithms_no_server_can_load(algorithm: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=f"algorithm {algorithm} is refused: .*{reason}.*vllm#45333"):
        ModelOptOptions.parse({"algorithm": algorithm}, where="quantizer").check(W4A4, "cpu")


def test_headroom_without_activations() -> None:
    options = ModelOptOptions(algorithm="act-headroom", headroom_weights="mse")
    options.check(W4A4, "cpu")
    with pytest.raises(ConfigError, match="input scales, which scheme W4A16 does not have; use algorithm mse"):
        options.check(W4A16, "cpu")


@pytest.mark.parametrize(
    ("algorithm", "reason"),
    [
        ("gptq", "stay at plain max"),
        ("awq-clip", "stay at plain max"),
        ("local-hessian", "one input quantizer"),
    ],
)
def test_per_expert_inputs_behind_the_fused_wrapper(algorithm: str, reason: str) -> None:
    options = ModelOptOptions.parse({"algorithm": algorithm}, where="quantizer")
    options.check_unfuser("reference")
    with pytest.raises(
        ConfigError, match=f"{algorithm} needs every expert's own inputs: .*{reason}.*--unfuser reference"
    ):
        options.check_unfuser("modelopt")


def test_headroom_passes_its_weights_algorithm_on() -> None:
    options = ModelOptOptions(algorithm="act-headroom", headroom_weights="local-hessian")
    assert options.needs_tokens
    with pytest.raises(ConfigError, match="local-hessian needs every expert's own inputs"):
        options.check_unfuser("modelopt")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"algorithm": "awq"}, r"quantizer.algorithm: should be 'max', 'mse'.*\(given: 'awq'\)"),
        ({"gptq_damping": 0.1}, "gptq_damping belongs to algorithm gptq, not max"),
        ({"algorithm": "mse", "clip_step": 0.1}, "clip_step belongs to algorithm awq-clip, not mse"),
        ({"algorithm": "gptq", "gptq_block_size": 100}, "quantizer.gptq_block_size: .*multiple of 16"),
        ({"headroom_rho": 28672, "algorithm": "act-headroom"}, "quantizer.headroom_rho: .*less than 28672"),
        ({"dampening": 1}, "quantizer.dampening: unknown key"),
    ],
)
def test_options_that_cannot_be_meant(data: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelOptOptions.parse(data, where="quantizer")


def test_options_survive_json() -> None:
    options = ModelOptOptions(algorithm="gptq", gptq_damping=0.05)
    assert ModelOptOptions.parse(options.model_dump(mode="json"), where="quantizer") == options


@pytest.mark.parametrize(
    ("job", "kind", "message"),
    [
        (
            "rare-error",
            "QuantizationError",
            "layer 0, expert 5: 0 calibration tokens, 1 wanted (3 such experts)",
        ),
        ("too-rare", "QuantizationError", "saw 100000 calibration tokens; calibrate on more samples"),
        ("gptq-fused", "ConfigError", "use --unfuser reference"),
        ("no-tokens", "ConfigError", "an FP8 KV cache needs calibration tokens, and this job has none"),
        (
            "no-hessian-tokens",
            "ConfigError",
            "algorithm gptq needs calibration tokens, and this job has none",
        ),
        (
            "search-nothing",
            "QuantizationError",
            "mse: no weight was searched, so the result would be plain max",
        ),
        ("zero-expert", "QuantizationError", "layers.0.experts.1.gate_proj: global scale 0"),
    ],
)
def test_jobs_that_cannot_end_well(second_runs: Runs, job: str, kind: str, message: str) -> None:
    error = second_runs[job].error
    assert error["type"] == kind
    assert message in error["message"]


class Fused(nn.Module):
    """What ModelOpt wraps."""

    def __init__(self) -> None:
        super().__init__()
        self.num_experts = 2
        self.gate_up_proj = nn.Parameter(torch.zeros(2, 8, 4))
        self.down_proj = nn.Parameter(torch.zeros(2, 4, 4))


def test_unfuser_leaves_fused_experts_alone() -> None:
    model = nn.ModuleDict({"experts": Fused()})
    before = list(model.state_dict())
    unfuser = ModelOptUnfuser(Options())
    unfuser.unfuse(model)
    unfuser.fuse(model)
    assert list(model.state_dict()) == before


def test_unfuser_refuses_experts_that_modelopt_would_skip() -> None:
    model = nn.ModuleDict({"experts": nn.ModuleList([nn.Linear(4, 4)])})
    with pytest.raises(ModelError, match=r"experts \(ModuleList\): not the fused form that ModelOpt wraps"):
        ModelOptUnfuser(Options()).unfuse(model)


def test_unfuser_refuses_a_model_without_experts() -> None:
    with pytest.raises(ModelError, match="Linear: no fused experts in this model"):
        ModelOptUnfuser(Options()).unfuse(nn.Linear(4, 4))
