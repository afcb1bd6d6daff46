"""Input scales of linears that no calibration token reached."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fourfold.models.gemma4 import linear_module
from fourfold.nvfp4.constants import GLOBAL_SCALE_DIVISOR
from fourfold.sensitivity.layer import QuantizableLayer
from fourfold.sensitivity.weights import Decoded

PREFIX = "model.language_model.layers.0."


def test_an_unreached_expert_takes_its_scale_from_experts_not_from_the_dense_mlp() -> None:
    """The dense MLP's projections have the experts' names, and inputs of another size."""
    names = ["mlp.gate_proj", *(f"experts.{expert}.gate_proj" for expert in range(3))]
    layer = nn.Module()
    layer.mlp = nn.ModuleDict({"gate_proj": nn.Linear(16, 16, bias=False)})
    layer.experts = nn.ModuleList(nn.ModuleDict({"gate_proj": nn.Linear(16, 16, bias=False)}) for _ in range(3))
    layer.requires_grad_(False)
    decoded = [Decoded(linear_module(PREFIX + name, (16, 16)), torch.zeros(16, 16), None) for name in names]
    watched = QuantizableLayer(layer, PREFIX, iter(decoded))
    with watched.observing():
        for name, largest in zip(names[:3], (100.0, 2.0, 3.0), strict=True):
            layer.get_submodule(name)(torch.full((1, 16), largest))
    scales = {state.module.name.removeprefix(PREFIX): state.input_scale for state in watched.states}
    amax = {name: float(scale * GLOBAL_SCALE_DIVISOR) for name, scale in scales.items() if scale is not None}
    assert amax == pytest.approx(dict(zip(names, (100.0, 2.0, 3.0, 3.0), strict=True)))
