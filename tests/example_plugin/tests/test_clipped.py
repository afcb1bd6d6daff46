"""The promises of a quantizer, checked by Fourfold's own suite, for each algorithm."""

from typing import ClassVar

from fourfold.conformance import Refusal
from fourfold.conformance.suite import QuantizerConformance

NEEDS_ACTIVATIONS = (
    Refusal(recipe={"scheme": "W4A4"}, message="use scheme W4A16"),
    Refusal(recipe={"scheme": "W4A16", "kv_cache": "fp8"}, message="kv_cache none"),
)


class TestMax(QuantizerConformance):
    plugin = "fourfold_clipped.hooks"
    name = "clipped"
    refusals = NEEDS_ACTIVATIONS


class TestClip(QuantizerConformance):
    plugin = "fourfold_clipped.hooks"
    name = "clipped"
    options: ClassVar[dict[str, object]] = {"algorithm": "clip", "clip_ratio": 0.8}
    refusals = NEEDS_ACTIVATIONS
