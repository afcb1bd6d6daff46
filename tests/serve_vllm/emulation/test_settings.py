"""The plugin's environment variables: what they choose, and the words of each refusal."""

from __future__ import annotations

import pytest

from fourfold.errors import ConfigError
from fourfold_vllm.emulation.settings import Decode, InputScale, Settings


def test_defaults_compute_w4a4_on_cpus_alone():
    settings = Settings.from_environment({})
    assert settings.applies_to("cpu") and not settings.applies_to("cuda")
    assert settings.quantize_activations
    assert settings.input_scale is InputScale.MERGED
    assert settings.decode is Decode.ONCE


@pytest.mark.parametrize("variables", [{"FOURFOLD_ACTIVATIONS": "none"}, {"FOURFOLD_INPUT_SCALE": "ignored"}])
def test_either_leaves_activations_alone(variables):
    assert not Settings.from_environment(variables).quantize_activations


def test_switches():
    assert Settings.from_environment({"FOURFOLD_EMULATION": "on"}).applies_to("cuda")
    assert not Settings.from_environment({"FOURFOLD_EMULATION": "off"}).applies_to("cpu")


def test_settings_that_compute_differently_have_different_graphs():
    variables = [
        {},
        {"FOURFOLD_ACTIVATIONS": "none"},
        {"FOURFOLD_INPUT_SCALE": "per-expert"},
        {"FOURFOLD_DECODE": "lazy"},
    ]
    assert len({Settings.from_environment(v).graph_key for v in variables}) == len(variables)


@pytest.mark.parametrize(
    ("variables", "device", "message"),
    [
        ({"FOURFOLD_EMULATION": "yes"}, "cpu", "FOURFOLD_EMULATION='yes': should be one of auto, on, off"),
        ({"FOURFOLD_ACTIVATIONS": "NVFP4"}, "cpu", "FOURFOLD_ACTIVATIONS='NVFP4': should be one of nvfp4, none"),
        (
            {"FOURFOLD_INPUT_SCALE": "max"},
            "cpu",
            "FOURFOLD_INPUT_SCALE='max': should be one of per-expert, merged, ignored",
        ),
        ({"FOURFOLD_DECODE": ""}, "cpu", "FOURFOLD_DECODE='': should be one of once, lazy"),
        (
            {"FOURFOLD_ACTIVATIONS": "none", "FOURFOLD_INPUT_SCALE": "merged"},
            "cpu",
            "FOURFOLD_ACTIVATIONS=none contradicts FOURFOLD_INPUT_SCALE=merged: input scales are for quantized "
            "activations, and ignoring them leaves activations as they are; set only one",
        ),
        (
            {"FOURFOLD_EMULATION": "on"},
            "tpu",
            "FOURFOLD_EMULATION=on: the emulation runs on cpu or cuda, not on 'tpu'",
        ),
        (
            {"FOURFOLD_INPUT_SCALE": "per-expert"},
            "cuda",
            "FOURFOLD_INPUT_SCALE would have no effect: the emulation is off on 'cuda' (FOURFOLD_EMULATION=auto); "
            "set FOURFOLD_EMULATION=on",
        ),
    ],
)
def test_refusals(variables, device, message):
    with pytest.raises(ConfigError) as caught:
        Settings.from_environment(variables).applies_to(device)
    assert str(caught.value) == message
