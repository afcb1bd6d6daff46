"""What is refused, by its message: before the toolchain starts where that is possible."""

from __future__ import annotations

import re

import pytest

from fourfold.config import Recipe
from fourfold.errors import ConfigError
from fourfold_llmcompressor.options import LlmcompressorOptions

from .conftest import Runs

MESSAGES = {
    "rare-error": (
        "QuantizationError",
        r"layer 0, expert 5 saw 0 calibration tokens, 1 are needed \(5 such experts\); give more samples, "
        r"or set recipe.rare_experts to layer-max$",
    ),
    "too-rare": (
        "QuantizationError",
        r"layer 0: every expert saw too few calibration tokens, layer-max has nothing to take; "
        r"give more samples$",
    ),
    "smoothquant-few": (
        "QuantizationError",
        r"layer 0, expert 5 saw 0 calibration tokens, 2 are needed \(13 such experts\); give more samples: "
        r"smoothquant scales each expert on its own, so no rule can help$",
    ),
    "smoothquant-linearized": (
        "ConfigError",
        r"unfuser: smoothquant fails on the experts of unfuser llmcompressor, called without tokens too; "
        r"choose reference$",
    ),
    "smoothquant-attention": (
        "ConfigError",
        r"recipe: smoothquant scales up_proj against down_proj, and no such pair is a target; "
        r"include both, or choose another algorithm$",
    ),
    "no-cuda": ("DeviceError", r"device 'cuda' was asked for, and torch sees no GPU; choose --device cpu$"),
    "no-tokens": ("ConfigError", r"calibration: max for W4A4 needs tokens, and none were given$"),
    "no-hessian-tokens": ("ConfigError", r"calibration: gptq for W4A16 needs tokens, and none were given$"),
    "unfuser-dtype": (
        "ModelError",
        r"\S+layers\.0\.experts: config.json states dtype torch.float32, its weights are torch.bfloat16; "
        r"llm-compressor would un-fuse into the stated one; correct text_config.dtype, or use the "
        r"unfuser 'reference'$",
    ),
    "unfuser-nothing": (
        "ModelError",
        r"llm-compressor finds no fused experts in this model; use the unfuser 'reference'$",
    ),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_job_is_refused(second_runs: Runs, name: str) -> None:
    kind, message = MESSAGES[name]
    error = second_runs[name].error
    assert error["type"] == kind
    assert re.match(message, error["message"]), error["message"]


REASONS = {
    "awq": "RuntimeError: Found no NVIDIA driver",
    "awq-alone": "ValidationError: 1 validation error for Recipe\n  Value error, Recipe includes AWQModifier with no",
    "awq-default-mappings": "ValueError: Found a final incomplete set with matches found for keys",
    "smoothquant-linearized": "IndexError: min(): Expected reduction dim 0 to have non-zero size.",
    "autoround": "TypeError: 'NoneType' object does not support item assignment",
    "autoround-w4a16": "ValueError: No quantization function found for dtype=fp, bits=4",
}


@pytest.mark.parametrize("name", REASONS)
def test_the_reason_for_a_refusal_or_a_detour_still_stands(second_runs: Runs, name: str) -> None:
    """llm-compressor 0.14.0.1 itself; where a release answers otherwise, ours can go."""
    assert second_runs["reasons"].report("reasons.json")[name].startswith(REASONS[name])


def check(options: dict[str, object], recipe: dict[str, object] | None = None, device: str = "cpu") -> None:
    LlmcompressorOptions.parse(options, where="quantizer").check(Recipe.parse(recipe or {}, where=""), device)


def test_awq_is_refused_on_cpu_with_the_reason() -> None:
    with pytest.raises(ConfigError, match=r"^quantizer\.algorithm: awq does not run on cpu: .* needs CUDA;"):
        check({"algorithm": "awq"})
    check({"algorithm": "awq"}, device="cuda")


@pytest.mark.parametrize(
    ("options", "recipe", "message"),
    [
        (
            {},
            {"scheme": "W4A16"},
            r"^quantizer\.algorithm: autoround is W4A4 only: .* choose gptq or expanded-mse",
        ),
        ({}, {"weights_only": ("*.self_attn.*",)}, r"^quantizer\.algorithm: autoround is W4A4 only: "),
        ({}, {"kv_cache": "fp8"}, r"^quantizer\.algorithm: autoround observes no keys and values, .* choose"),
        (
            {"calibrate_all_experts": True},
            {},
            r"^quantizer\.calibrate_all_experts: autoround tunes each expert on",
        ),
    ],
)
def test_autoround_is_refused_where_it_cannot_finish(
    options: dict[str, object], recipe: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        check({"algorithm": "autoround", **options}, recipe)


def test_an_unknown_algorithm_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"^quantizer\.algorithm: should be 'max', 'mse', .* 'autoround'"):
        check({"algorithm": "four-over-six"})


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("gptq_damping", 0, r"quantizer\.gptq_damping: should be greater than 0 \(given: 0\)"),
        ("autoround_iterations", 0, r"quantizer\.autoround_iterations: should be greater than or equal to 1"),
        ("bits", 4, r"quantizer\.bits: unknown key"),
        ("gptq_damping", 0.5, "gptq_damping belongs to algorithm gptq, not max; leave it out, or say --algorithm gptq"),
        ("propagate_error", False, "propagate_error belongs to algorithm gptq, not max"),
        ("smoothing_strength", 0.9, "smoothing_strength belongs to algorithm smoothquant, not max"),
        ("awq_grid_points", 5, "awq_grid_points belongs to algorithm awq, not max"),
        ("autoround_iterations", 3, "autoround_iterations belongs to algorithm autoround, not max"),
    ],
)
def test_a_wrong_option_is_named(option: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check({option: value})


@pytest.mark.parametrize("algorithm", ["gptq", "awq", "smoothquant", "autoround", "imatrix-mse", "expanded-imatrix"])
def test_algorithms_that_read_activations_need_tokens_for_weights_alone(algorithm: str) -> None:
    assert LlmcompressorOptions(algorithm=algorithm).needs_tokens


@pytest.mark.parametrize("algorithm", ["max", "mse", "expanded-mse"])
def test_algorithms_that_look_at_weights_alone_need_none(algorithm: str) -> None:
    assert not LlmcompressorOptions(algorithm=algorithm).needs_tokens
