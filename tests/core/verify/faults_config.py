"""Faults in config.json and hf_quant_config.json."""

from __future__ import annotations

from .faults import Fault
from .good_checkpoints import TEXT
from .planting_files import (
    ATTENTION_BF16,
    CT_ONLY,
    FP8,
    HF,
    MODELOPT_ONLY,
    W4A16,
    both,
    config,
    drop_kv_scale,
    edit_json,
    group,
    group_size,
    hf_fact,
    ignore,
    ignore_quantized_layer,
    no_input_scales,
    other_method,
    remove,
    rope_base,
    second_group,
    section,
    state_kv,
    state_scheme,
)

CONFIG_FAULTS = (
    # config
    Fault("no quantization_config", "FF100", config(lambda c: c.pop("quantization_config")), also=("FF105",)),
    Fault("quant_method of another layout", "FF101", other_method),
    Fault("quant_algo FP8", "FF102", both("quant_algo", "quant_algo", "FP8"), layouts=MODELOPT_ONLY),
    Fault("another format", "FF102", section(lambda s: s.__setitem__("format", "pack-quantized")), layouts=CT_ONLY),
    Fault("8-bit weights stated", "FF102", group(lambda g: g["weights"].__setitem__("num_bits", 8))),
    Fault("integer type stated", "FF102", group(lambda g: g["weights"].__setitem__("type", "int"))),
    Fault("two config groups", "FF102", section(second_group)),
    Fault("group size 32", "FF103", group_size),
    Fault("W4A4 tensors stated as W4A16", "FF104", state_scheme("W4A16_NVFP4", inputs=False)),
    Fault("all input scales missing", "FF104", no_input_scales),
    Fault("weights only, stated as W4A4", "FF104", state_scheme("NVFP4", inputs=True), variant=W4A16),
    Fault("hf_quant_config.json missing", "FF105", after=remove(HF), layouts=MODELOPT_ONLY),
    Fault(
        "hf_quant_config.json with another list",
        "FF105",
        after=edit_json(HF, lambda h: h["quantization"]["exclude_modules"].pop()),
        layouts=MODELOPT_ONLY,
    ),
    Fault(
        "hf_quant_config.json with another KV scheme",
        "FF105",
        after=hf_fact("kv_cache_quant_algo", "FP8"),
        layouts=MODELOPT_ONLY,
    ),
    Fault("the router not ignored", "FF106", ignore("", remove="layers.0.router")),
    Fault("lm_head not ignored", "FF106", ignore("", remove="lm_head")),
    Fault("BF16 attention not ignored", "FF106", ignore("", remove="layers.1.self_attn"), variant=ATTENTION_BF16),
    Fault(
        "values read from BF16 keys not ignored",
        "FF106",
        ignore("", remove="layers.2.self_attn.v_proj"),
        variant=ATTENTION_BF16,
        layouts=CT_ONLY,
    ),
    Fault("a quantized module ignored", "FF107", ignore(f"{TEXT}.0.mlp.up_proj")),
    Fault("a quantized layer ignored", "FF107", ignore_quantized_layer),
    Fault("an ignore list for other names", "FF108", ignore("model.layers.0.mlp.experts.0.gate_proj")),
    Fault("a wildcard in the wrong layout", "FF108", ignore(f"{TEXT}.*.router*"), layouts=CT_ONLY),
    Fault(
        "experts.1* catches experts 10 and 11",
        "FF109",
        ignore(f"{TEXT}.0.experts.1*"),
        layouts=MODELOPT_ONLY,
        also=("FF107",),
    ),
    Fault(
        "an entry that is a substring of others", "FF109", ignore("experts.1"), layouts=MODELOPT_ONLY, also=("FF108",)
    ),
    Fault(
        "targets that miss the experts",
        "FF110",
        group(lambda g: g.__setitem__("targets", [r"re:.*self_attn\..*", r"re:.*\.mlp\..*"])),
        layouts=CT_ONLY,
    ),
    Fault("FP8 KV cache stated, no scales", "FF111", state_kv({"dynamic": False, "num_bits": 8, "type": "float"})),
    Fault("KV scales without a scheme", "FF111", state_kv(None), variant=FP8),
    Fault("one KV scale missing", "FF111", drop_kv_scale, variant=FP8),
    Fault(
        "4-bit KV cache stated",
        "FF111",
        section(lambda s: s.__setitem__("kv_cache_scheme", {"num_bits": 4, "type": "float"})),
    ),
    Fault("another rope base", "FF112", config(rope_base), blind=False),
    Fault("softcapping lost", "FF112", config(lambda c: c["text_config"].pop("final_logit_softcapping")), blind=False),
    Fault("no version", "FF114", lambda e, _: e.section.pop("producer" if e.is_modelopt else "version")),
    Fault(
        "status not compressed",
        "FF114",
        section(lambda s: s.__setitem__("quantization_status", "frozen")),
        layouts=CT_ONLY,
    ),
    Fault(
        "a class nobody knows",
        "FF116",
        config(lambda c: c.__setitem__("architectures", ["GemmaNext"])),
        also=("FF112",),
    ),
)
