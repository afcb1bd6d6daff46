"""Faults that are traps: for a loader, for a parser, for whoever copies the folder."""

from __future__ import annotations

import json

from .faults import Fault
from .good_checkpoints import TEXT
from .planting_files import (
    CONFIG,
    CT_ONLY,
    INDEX,
    MODELOPT_ONLY,
    SHARD,
    SHARDED,
    claim,
    config,
    edit_header,
    edit_json,
    first_entry,
    group,
    ignore,
    ignore_by_many_patterns,
    link_outside_to,
    pipe,
    raw_header,
    section,
    stray_shard,
    write,
)

HOSTILE_FAULTS = (
    Fault(
        "a shard that is a link out of the folder",
        "FF004",
        after=link_outside_to(SHARD),
        also=("FF001", "FF020", "FF022", "FF028", "FF029", "FF035"),
    ),
    Fault(
        "config.json that is a link out of the folder", "FF004", after=link_outside_to(CONFIG), also=("FF011", "FF112")
    ),
    Fault("a tokenizer that is a pipe", "FF011", after=pipe("tokenizer.json"), also=("FF124",)),
    Fault("a shard that is a pipe", "FF002", after=pipe(SHARD), also=("FF020", "FF022", "FF028", "FF029", "FF035")),
    Fault(
        "a shard name with a line break in the index",
        "FF003",
        variant=SHARDED,
        after=claim("a\nb.safetensors"),
        also=("FF005",),
    ),
    Fault("a parent folder for a shard", "FF003", variant=SHARDED, after=claim(".."), also=("FF005",)),
    Fault(
        "a tensor name of 10,000 characters",
        "FF002",
        after=raw_header(lambda t: t.replace(b"0.layer_scalar", b"0.layer_scalar" + b"x" * 10_000)),
        also=("FF029",),
    ),
    Fault(
        "a tensor name that clears the screen",
        "FF002",
        after=raw_header(lambda t: t.replace(b"0.layer_scalar", rb"0.layer_scalar\u001b[2J")),
        also=("FF029",),
    ),
    Fault(
        "half a surrogate pair in a tensor name",
        "FF002",
        after=raw_header(lambda t: t.replace(b"0.layer_scalar", rb"0.layer_scalar\ud800")),
        also=("FF020", "FF022", "FF028", "FF029"),
    ),
    Fault(
        "a key twice in a header entry",
        "FF002",
        after=raw_header(lambda t: t.replace(b'{"dtype": "BF16"', b'{"dtype": "F32", "dtype": "BF16"', 1)),
    ),
    Fault("metadata that is no object", "FF002", after=edit_header(lambda h: h.__setitem__("__metadata__", 1))),
    Fault(
        "a header of a million brackets",
        "FF002",
        after=write(SHARD, (4_000_001).to_bytes(8, "little") + b"[" + b"[]," * 1_333_333 + b"0"),
        also=("FF020", "FF022", "FF028", "FF029", "FF035"),
    ),
    Fault(
        "overlapping offsets outside the data",
        "FF002",
        after=edit_header(lambda h: first_entry(h).__setitem__("data_offsets", [2**62, 2**62])),
        also=("FF024", "FF025", "FF028", "FF029"),
    ),
    Fault(
        "a key twice in config.json",
        "FF011",
        after=write(CONFIG, '{"model_type": "x", "model_type": "y"}'),
        also=("FF112",),
    ),
    Fault(
        "a key twice in the index",
        "FF005",
        variant=SHARDED,
        after=write(INDEX, '{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}'),
    ),
    Fault(
        "a number of many digits in config.json",
        "FF011",
        after=write(CONFIG, '{"a": ' + "9" * 10_000 + "}"),
        also=("FF112",),
    ),
    Fault("a tokenizer that is no JSON", "FF011", after=write("tokenizer.json", "{"), also=("FF124",)),
    Fault(
        "hf_quant_config.json that is no JSON", "FF011", after=write("hf_quant_config.json", "{"), layouts=MODELOPT_ONLY
    ),
    Fault("a shard of another write beside the only one", "FF006", after=stray_shard),
    Fault("a pickled tokenizer", "FF009", after=write("tokenizer.pkl", b"\x80\x04N."), also=("FF124",)),
    Fault(
        "a pickle in a folder below",
        "FF009",
        after=lambda f: ((f / "original").mkdir(), (f / "original" / "consolidated.00.pth").write_bytes(b"\x80\x04N.")),
    ),
    Fault(
        "remote code for the text model",
        "FF010",
        config(lambda c: c["text_config"].__setitem__("auto_map", {"AutoModel": "m.M"})),
        also=("FF112",),
    ),
    Fault(
        "remote code for the tokenizer",
        "FF010",
        after=edit_json("tokenizer_config.json", lambda c: c.__setitem__("auto_map", {"AutoTokenizer": ["t.T", None]})),
        also=("FF124",),
    ),
    Fault(
        "remote code for the processor",
        "FF010",
        after=edit_json("processor_config.json", lambda c: c.__setitem__("auto_map", {"AutoProcessor": "p.P"})),
        also=("FF124",),
    ),
    Fault(
        "attention code from the hub",
        "FF010",
        config(lambda c: c.__setitem__("attn_implementation", "someone/kernel")),
        also=("FF112",),
    ),
    Fault(
        "an adapter beside the weights",
        "FF013",
        after=write("adapter_config.json", json.dumps({"base_model_name_or_path": "someone/else"})),
    ),
    Fault(
        "a rotation stated that nobody made",
        "FF117",
        section(lambda s: s.__setitem__("transform_config", {"config_groups": {"u": {"type": "hadamard"}}})),
    ),
    Fault(
        "sparsity stated", "FF117", section(lambda s: s.__setitem__("sparsity_config", {"format": "sparse-24-bitmask"}))
    ),
    Fault(
        "a second quantization_config in text_config",
        "FF117",
        lambda e, _: e.config["text_config"].__setitem__("quantization_config", dict(e.section)),
        also=("FF112",),
    ),
    Fault(
        "the other layout's hf_quant_config.json", "FF105", after=write("hf_quant_config.json", "{}"), layouts=CT_ONLY
    ),
    Fault("an ignore pattern that never ends", "FF118", ignore(r"re:(a+)+\1$"), layouts=CT_ONLY, also=("FF108",)),
    Fault(
        "a target that never ends",
        "FF118",
        group(lambda g: g["targets"].append(r"re:(?=a)(.*)*(.*)*x")),
        layouts=CT_ONLY,
    ),
    Fault(
        "an ignore pattern of 5,000 characters", "FF118", ignore("*a" * 2500), layouts=MODELOPT_ONLY, also=("FF108",)
    ),
    Fault("thousands of patterns in the ignore list", "FF118", ignore_by_many_patterns),
    Fault(
        "a nested layer of another depth",
        "FF027",
        lambda e, _: e.tensors.__setitem__(f"{TEXT}.0.0.layer_scalar", e.tensors[f"{TEXT}.0.layer_scalar"].clone()),
    ),
)
