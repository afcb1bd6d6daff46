"""Each algorithm differs from round to nearest and lowers the error it is meant to lower, by our codec."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from fourfold.models.gemma4 import read_gemma4

from .conftest import Runs
from .jobs import ALGORITHMS, SMOOTHING

DENSE_PAIR = ("model.language_model.layers.0.mlp.up_proj", "model.language_model.layers.0.mlp.down_proj")


def weight_error(runs: Runs, name: str, norm: float = 2.0, grams: dict[str, torch.Tensor] | None = None) -> float:
    """Sum of |decoded - source|^norm over all targets; with ``grams``, columns weighted by their inputs."""
    total = 0.0
    for module in read_gemma4(runs.model).linears.values():
        difference = runs[name].artifact.weight(module.name).dequantize() - module.read(runs.model).float()
        error = difference.abs() ** norm
        if grams is not None:
            importance = grams[f"{module.name}.gram"].diagonal()
            error = error * (importance / importance.mean())
        total += float(error.sum())
    return total


def output_error(runs: Runs, name: str, grams: dict[str, torch.Tensor]) -> float:
    """Sum over all targets of |(decoded - source) x|^2 / |source x|^2 on the calibration inputs."""
    total = 0.0
    for module in read_gemma4(runs.model).linears.values():
        source = module.read(runs.model).float()
        difference = runs[name].artifact.weight(module.name).dequantize() - source
        gram = grams[f"{module.name}.gram"]
        total += float(((difference @ gram) * difference).sum() / ((source @ gram) * source).sum())
    return total


@pytest.fixture(scope="module")
def grams(runs: Runs) -> dict[str, torch.Tensor]:
    return load_file(runs["inputs"].folder / "grams.safetensors")


@pytest.mark.parametrize("name", ALGORITHMS)
def test_differs_from_round_to_nearest(runs: Runs, name: str) -> None:
    nearest, other = runs["reference"].artifact, runs[name].artifact
    different = [
        module
        for module in nearest.manifest.quantized_modules
        if not torch.equal(nearest.weight(module).packed_weight, other.weight(module).packed_weight)
    ]
    assert len(different) > len(nearest.manifest.quantized_modules) / 2 or name == "smoothquant"
    assert different


def test_mse_lowers_the_weight_error_and_a_wider_search_lowers_it_more(runs: Runs) -> None:
    nearest, searched, wider = (weight_error(runs, n, 2.4) for n in ("reference", "mse", "expanded-mse"))
    assert wider < 0.95 * searched
    assert searched < 0.95 * nearest


@pytest.mark.parametrize(("weighted", "plain"), [("imatrix-mse", "mse"), ("expanded-imatrix", "expanded-mse")])
def test_importance_lowers_the_error_of_important_columns(
    runs: Runs, grams: dict[str, torch.Tensor], weighted: str, plain: str
) -> None:
    assert weight_error(runs, weighted, grams=grams) < weight_error(runs, plain, grams=grams)
    assert weight_error(runs, weighted) > weight_error(runs, plain)


def test_gptq_lowers_the_output_error_though_not_the_weight_error(runs: Runs, grams: dict[str, torch.Tensor]) -> None:
    assert output_error(runs, "gptq-same-inputs", grams) < 0.8 * output_error(runs, "reference", grams)
    assert weight_error(runs, "gptq-same-inputs") > weight_error(runs, "reference")


def test_gptq_sees_the_layers_before_it_quantized_unless_told_not_to(runs: Runs) -> None:
    propagated, same = runs["gptq"].artifact, runs["gptq-same-inputs"].artifact
    first = [m for m in propagated.manifest.quantized_modules if ".layers.0." in m]
    last = [m for m in propagated.manifest.quantized_modules if ".layers.1." in m]
    assert all(torch.equal(propagated.weight(m).packed_weight, same.weight(m).packed_weight) for m in first)
    assert not any(torch.equal(propagated.weight(m).packed_weight, same.weight(m).packed_weight) for m in last)


@pytest.mark.parametrize("name", [n for n in ALGORITHMS if n != "smoothquant"])
def test_first_layers_output_error_falls(runs: Runs, name: str) -> None:
    errors = runs["layer-errors"].report("errors.json")
    assert errors[name] < errors["reference"]


def test_autoround_lowers_the_first_layers_output_error_by_half(runs: Runs) -> None:
    errors = runs["layer-errors"].report("errors.json")
    assert errors["autoround"] < 0.5 * errors["reference"]


@pytest.mark.parametrize("name", SMOOTHING)
def test_smoothing_lowers_the_error_of_an_mlp_with_outlier_channels(runs: Runs, name: str) -> None:
    errors = runs["mlp-errors"].report("errors.json")
    assert errors[name] < 0.9 * errors["reference"]


@pytest.mark.parametrize("name", SMOOTHING)
def test_smoothing_scales_rows_against_columns_and_says_so(runs: Runs, name: str) -> None:
    gemma, artifact = read_gemma4(runs.model), runs[name].artifact
    up, down = (artifact.weight(module).dequantize() for module in DENSE_PAIR)
    source_up, source_down = (gemma.linears[module].read(runs.model).float() for module in DENSE_PAIR)
    rows = (up * source_up).sum(1) / source_up.square().sum(1)
    columns = (down * source_down).sum(0) / source_down.square().sum(0)
    assert rows.max() / rows.min() > 2
    torch.testing.assert_close(rows * columns, torch.ones(len(rows)), rtol=0.1, atol=0)
    transformed = artifact.manifest.transformed
    assert set(DENSE_PAIR) <= transformed.keys()
    assert {module.rpartition(".")[2] for module in transformed} == {"up_proj", "down_proj"}
    assert set(transformed.values()) == {f"{name}: up_proj rows, down_proj columns"}


def test_awqs_input_scales_are_those_of_the_transformed_model(runs: Runs) -> None:
    """What enters ``down_proj`` shrinks with the rows of ``up_proj``; an observer of the pass before would not know."""
    nearest, awq = (runs[name].artifact.input_global_scale(DENSE_PAIR[1]) for name in ("reference", "awq"))
    assert nearest is not None
    assert awq is not None
    assert awq < 0.7 * nearest


@pytest.mark.parametrize("name", ["reference", "gptq", "autoround", "imatrix-mse"])
def test_nothing_else_claims_a_transformation(runs: Runs, name: str) -> None:
    assert runs[name].artifact.manifest.transformed == {}
