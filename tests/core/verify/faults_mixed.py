"""Faults in what a checkpoint of two schemes says of each module."""

from __future__ import annotations

from .faults import Fault
from .good_checkpoints import EXPERT, KEYS_AS_VALUES, TEXT
from .planting_files import CT_ONLY, HF, MODELOPT_ONLY, edit_json
from .planting_mixed import (
    MIXED,
    forget,
    in_eight_bits,
    layers,
    round_inputs_of_both,
    state_alone,
    swap_schemes,
    target,
    target_twice,
)

_UP, _QUERY = f"{EXPERT}.up_proj", f"{TEXT}.0.self_attn.q_proj"
_WHOLE_EXPERT = tuple(f"{EXPERT}.{part}_proj" for part in ("gate", "up", "down"))

MIXED_FAULTS = (
    Fault("a quantized module that quantized_layers lacks", "FF110", forget(_UP), variant=MIXED, layouts=MODELOPT_ONLY),
    Fault(
        "quantized_layers lists what is not quantized",
        "FF110",
        layers(lambda listed: listed.__setitem__("lm_head", {"quant_algo": "NVFP4", "group_size": 16})),
        variant=MIXED,
        layouts=MODELOPT_ONLY,
    ),
    Fault(
        "an algorithm that is not NVFP4 in quantized_layers",
        "FF102",
        layers(lambda listed: listed[_UP].__setitem__("quant_algo", "FP8")),
        variant=MIXED,
        layouts=MODELOPT_ONLY,
    ),
    Fault(
        "group size 32 in quantized_layers",
        "FF103",
        layers(lambda listed: listed[_UP].__setitem__("group_size", 32)),
        variant=MIXED,
        layouts=MODELOPT_ONLY,
    ),
    Fault(
        "hf_quant_config.json with other algorithms",
        "FF105",
        after=edit_json(HF, lambda h: h["quantization"]["quantized_layers"].pop(_QUERY)),
        variant=MIXED,
        layouts=MODELOPT_ONLY,
    ),
    Fault("two schemes stated of each other's modules", "FF104", swap_schemes, variant=MIXED),
    Fault(
        "a config group that rounds what quantized_layers does not",
        "FF104",
        round_inputs_of_both,
        variant=MIXED,
        layouts=MODELOPT_ONLY,
    ),
    Fault("a module in two config groups", "FF102", target_twice, variant=MIXED, also=("FF025", "FF119")),
    Fault(
        "weights alone, and left out of their group",
        "FF025",
        forget(_QUERY),
        variant=MIXED,
        layouts=CT_ONLY,
        also=("FF119",),
    ),
    Fault("gate stated of weights alone, up not", "FF119", state_alone(f"{TEXT}.0.mlp.gate_proj"), variant=MIXED),
    Fault("one expert stated of weights alone", "FF119", state_alone(*_WHOLE_EXPERT), variant=MIXED),
    Fault(
        "a parent's name among the targets",
        "FF110",
        target(*(f"{TEXT}.{layer}.self_attn" for layer in range(3))),
        variant=MIXED,
        layouts=CT_ONLY,
        also=("FF025",),
    ),
    Fault(
        "a pattern of targets that vLLM's names do not match",
        "FF110",
        target(r"re:^model\.language_model\.layers\.\d+\.self_attn\..*"),
        variant=MIXED,
        layouts=CT_ONLY,
    ),
    Fault(
        "thousands of patterns among the targets",
        "FF118",
        target(r"re:.*self_attn.*", *(f"re:.*self_attn.{n}" for n in range(1001))),
        variant=MIXED,
        layouts=CT_ONLY,
        also=("FF110",),
    ),
    Fault("a config group in FP8", "FF102", in_eight_bits, variant=MIXED, layouts=CT_ONLY, also=("FF103",)),
    Fault(
        "values read from keys in another group",
        "FF119",
        forget(f"{KEYS_AS_VALUES}.v_proj"),
        variant=MIXED,
        layouts=CT_ONLY,
    ),
    Fault(
        "an input scale in a module of weights alone",
        "FF026",
        lambda e, _: e.put(_QUERY, "input_global_scale", e.part(_QUERY, "global_scale")),
        variant=MIXED,
    ),
)
