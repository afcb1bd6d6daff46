"""The suite against what ships: the built-in backends, and both exporters, which need no toolchain.

The classes inherit their tests; that each of these can fail is shown by ``test_faults.py``.
"""

from __future__ import annotations

from typing import ClassVar

from fourfold.conformance import Refusal
from fourfold.conformance.suite import ExporterConformance, QuantizerConformance, UnfuserConformance


class TestReferenceUnfuser(UnfuserConformance):
    plugin = "fourfold.reference.hooks"
    name = "reference"


class TestReferenceQuantizer(QuantizerConformance):
    plugin = "fourfold.reference.hooks"
    name = "reference"
    refusals = (
        Refusal(recipe={"kv_cache": "fp8"}, message="stores no KV scales"),
        Refusal(recipe={}, options={"work": "folder"}, message="add --stream"),
    )


class TestReferenceGPTQ(QuantizerConformance):
    plugin = "fourfold.reference.hooks"
    name = "reference"
    options: ClassVar[dict[str, object]] = {"algorithm": "gptq", "stream": True}


class TestModelOptExporter(ExporterConformance):
    plugin = "fourfold_modelopt.hooks"
    name = "modelopt"


class TestCompressedTensorsExporter(ExporterConformance):
    plugin = "fourfold_llmcompressor.hooks"
    name = "compressed-tensors"
