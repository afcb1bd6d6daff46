"""The suite against what ships: the built-in backends, and both exporters, which need no toolchain."""

from __future__ import annotations

from fourfold.conformance import Refusal
from fourfold.conformance.suite import ExporterConformance, QuantizerConformance, UnfuserConformance


class TestReferenceUnfuser(UnfuserConformance):
    plugin = "fourfold.reference.hooks"
    name = "reference"


class TestReferenceQuantizer(QuantizerConformance):
    plugin = "fourfold.reference.hooks"
    name = "reference"
    refusals = (
        Refusal(recipe={"scheme": "W4A4"}, message="reads no activations"),
        Refusal(recipe={"scheme": "W4A16"}, device="cuda", message="runs on the CPU"),
    )


class TestModelOptExporter(ExporterConformance):
    plugin = "fourfold_modelopt.hooks"
    name = "modelopt"


class TestCompressedTensorsExporter(ExporterConformance):
    plugin = "fourfold_llmcompressor.hooks"
    name = "compressed-tensors"
