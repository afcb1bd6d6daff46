"""Equal to ModelOpt to the bit, and the same whichever way calibration runs."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import AutoModelForImageTextToText

from fourfold.artifact import Artifact
from fourfold.engine import experts
from fourfold.environments import ensure_environment
from fourfold.progress import NoProgress
from fourfold.stages.process import run_in_process

from .jobs import differing


def test_max_is_modelopts_max(demo, demo_max):
    """Packed bytes, block scales, global scales, input scales, token counts and fallbacks, from another environment."""
    request = demo.request(quantizer="modelopt")
    python = ensure_environment(demo.registry.quantizer("modelopt").environment, NoProgress())
    run_in_process(python, request, demo.work / "modelopt.log", NoProgress())
    theirs = Artifact(request.output)
    assert differing(demo_max, theirs) == []
    assert demo_max.manifest.expert_token_counts == theirs.manifest.expert_token_counts
    assert {f.module for f in demo_max.manifest.fallbacks} == {f.module for f in theirs.manifest.fallbacks}
    assert demo_max.manifest.packages["transformers"] != theirs.manifest.packages["transformers"]


def test_grouped_experts_are_eager_experts(small_model):
    """Given equal inputs: bit-equal to the eager loop. Transformers' grouped path adds in float32, and is not."""
    experts.register()
    model = AutoModelForImageTextToText.from_pretrained(small_model, dtype=torch.bfloat16)
    layer = model.get_decoder().layers[0]
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(200, 64, generator=generator).to(torch.bfloat16)
    _, weights, index = layer.router(hidden)
    outputs = {}
    for implementation in ("eager", experts.IMPLEMENTATION, "grouped_mm"):
        module = copy.deepcopy(layer.experts)
        module.config._experts_implementation = implementation
        with torch.no_grad():
            outputs[implementation] = module(hidden, index, weights)
    assert torch.equal(outputs[experts.IMPLEMENTATION], outputs["eager"])
    assert not torch.equal(outputs["grouped_mm"], outputs["eager"])
    assert torch.allclose(outputs["grouped_mm"].float(), outputs["eager"].float(), rtol=2**-6, atol=1e-3)


def test_registering_again_keeps_what_is_compiled():
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    experts.register()
    before = [ALL_EXPERTS_FUNCTIONS[name] for name in (experts.IMPLEMENTATION, experts.FUSED)]
    experts.register()
    after = [ALL_EXPERTS_FUNCTIONS[name] for name in (experts.IMPLEMENTATION, experts.FUSED)]
    assert all(a is b for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("recipe", [{}, {"targets": "experts-only", "exclude": ("*.layers.0.*",)}], ids=["all", "some"])
def test_streamed_is_the_same(small, recipe):
    """On the device, in host memory, in two passes, spilled to disk and by two processes: the same to the byte."""
    on_device = small.quantize(recipe=recipe)
    ways = [{"stream": True}, {"stream": True, "host_memory_gib": 0.0}, {"stream": True, "host_memory_gib": 1.6e-5}]
    for options in ways + ([] if recipe else [{"processes": 2}]):
        other = small.quantize(recipe=recipe, **options)
        assert differing(on_device, other) == [], options
        assert on_device.manifest.expert_token_counts == other.manifest.expert_token_counts
    assert not list(small.work.rglob("hidden-*"))


def test_too_many_states_go_in_passes(small):
    """Room for two batches of four, of several lengths: all layers twice, nothing on disk, the same result."""
    begun = []

    class Watching(NoProgress):
        def begin(self, task, *, total, unit):
            begun.append((task, total))
            # Inside the artifact, so that it goes with what is left of an interrupted run.
            spills = list(small.work.rglob("hidden-*"))
            assert [path.parent.name for path in spills] == (["run-2"] if task.startswith("calibrate") else [])
            assert not list(small.work.rglob("hidden-*/layer-*"))

    once = small.quantize()
    twice = small.quantize(Watching(), stream=True, host_memory_gib=1.6e-5)
    layers = [(f"calibrate layer {layer}", 2) for layer in range(4)]
    assert begun[:8] == layers * 2
    assert differing(once, twice) == []
    assert once.manifest.expert_token_counts == twice.manifest.expert_token_counts


def test_padding_is_not_counted(small):
    counts = small.quantize().manifest.expert_token_counts
    assert {sum(layer) for layer in counts.values()} == {small.tokens.num_tokens * 2}


def test_layer_inputs_share_the_largest(small):
    """``expert_inputs=layer`` is what one input quantizer for all experts gives."""
    own, shared = small.quantize(), small.quantize(expert_inputs="layer")
    for name in own.manifest.quantized_modules:
        if ".experts." in name:
            parent, _, projection = name.rpartition(".")
            siblings = [f"{parent.rpartition('.')[0]}.{expert}.{projection}" for expert in range(8)]
            largest = max(float(own.input_global_scale(sibling)) for sibling in siblings)
            assert float(shared.input_global_scale(name)) == largest
        else:
            assert own.input_global_scale(name) == shared.input_global_scale(name)


def test_input_scales_from_another_checkpoint(small):
    calibrated = small.quantize()
    copied = small.quantize(input_scales=str(calibrated.path))
    assert differing(calibrated, copied) == []
    assert copied.manifest.quantizer.options["input_scales"] == {
        name: digest for name, digest in calibrated.manifest.files.items() if name.endswith(".safetensors")
    }
