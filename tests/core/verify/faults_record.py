"""Faults in side files and in the manifest."""

from __future__ import annotations

from .faults import Fault
from .good_checkpoints import TEXT
from .planting_files import (
    manifest,
    record_fallback,
    record_fate,
    record_module,
    rehashed,
    remove,
    write,
)
from .planting_mixed import MIXED
from .planting_transformed import DOWN, GATE, UP, noise, record_transformed, smooth

RECORD_FAULTS = (
    # weights that the manifest calls transformed
    Fault(
        "transformed weights whose factors do not cancel",
        "FF099",
        lambda e, source: smooth(e, source, cancel=False),
        after=record_transformed(UP, DOWN),
        manifest=True,
        blind=False,
    ),
    Fault(
        "noise that the manifest calls transformed",
        "FF081",
        noise,
        after=record_transformed(UP),
        manifest=True,
        also=("FF099",),
        blind=False,
    ),
    Fault(
        "a gate that the manifest calls transformed",
        "FF099",
        after=record_transformed(GATE),
        manifest=True,
        blind=False,
    ),
    # side files
    Fault("tokenizer missing", "FF120", after=remove("tokenizer.json")),
    Fault("chat template missing", "FF121", after=remove("chat_template.jinja")),
    Fault("processor config missing", "FF122", after=remove("processor_config.json")),
    Fault("generation config missing", "FF123", after=remove("generation_config.json")),
    Fault("another model's chat template", "FF124", after=write("chat_template.jinja", "{{ other }}"), blind=False),
    Fault("another model's tokenizer", "FF124", after=write("tokenizer.json", "{}"), blind=False),
    Fault("a tokenizer file of another model", "FF124", after=write("tokenizer.model", "x"), blind=False),
    Fault("special tokens left behind", "FF124", after=remove("special_tokens_map.json"), blind=False),
    # manifest
    Fault(
        "an artifact's manifest", "FF130", after=manifest(lambda m: m.__setitem__("kind", "artifact")), manifest=True
    ),
    Fault(
        "a file changed after the write",
        "FF131",
        after=write("generation_config.json", "{}"),
        manifest=True,
        also=("FF124", "FF136"),
    ),
    Fault("a file added after the write", "FF131", after=write("added.json", "{}"), manifest=True),
    Fault("a recorded file is gone", "FF131", after=remove("special_tokens_map.json"), manifest=True, also=("FF124",)),
    Fault("a module recorded that is not there", "FF132", after=record_module(f"{TEXT}.9.mlp.up_proj"), manifest=True),
    Fault("a module not recorded", "FF132", after=manifest(lambda m: m["quantized_modules"].pop()), manifest=True),
    Fault(
        "a kept tensor recorded as quantized",
        "FF133",
        after=record_fate(f"{TEXT}.0.layer_scalar", "quantized"),
        manifest=True,
    ),
    Fault("a tensor dropped without a reason", "FF133", after=record_fate("x.y", "dropped"), manifest=True),
    Fault(
        "another scheme recorded",
        "FF134",
        after=manifest(lambda m: m["recipe"].__setitem__("scheme", "W4A16")),
        manifest=True,
    ),
    Fault(
        "another module of weights alone recorded",
        "FF134",
        after=manifest(lambda m: m["recipe"].__setitem__("weights_only", ["*.mlp.*"])),
        manifest=True,
        variant=MIXED,
    ),
    Fault("a fallback of no module", "FF135", after=record_fallback("nowhere"), manifest=True),
    Fault(
        "a side file of another source",
        "FF136",
        after=rehashed(write("tokenizer.json", "{}")),
        manifest=True,
        also=("FF124",),
    ),
    Fault("an invalid manifest", "FF011", after=write("manifest.json", "{}"), manifest=True),
)
