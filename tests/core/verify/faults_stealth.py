"""Faults that no sum, no shape and no name shows: few values, plausible ones, or the right ones in the wrong place."""

from __future__ import annotations

from pathlib import Path

import torch

from .faults import Fault
from .good_checkpoints import EXPERTS, TEXT
from .planting_files import After, edit_json, write
from .planting_tensors import (
    ATTENTION,
    DENSE,
    DOWN,
    EXPERT,
    GATE,
    UP,
    change,
    copy_module,
    drop_all_experts_inputs,
    exchange,
    flip_code_bit,
    fuse_everything,
    quantize_kept,
    rename,
    requantize,
    roll_row,
    scale_group_by,
    store,
)


def _tokens_of(added: dict[str, int], named: dict[str, str]) -> After:
    """Add tokens to the tokenizer, and name some of them in its config."""

    def after(folder: Path) -> None:
        entries = [{"content": token, "id": number} for token, number in added.items()]
        edit_json("tokenizer.json", lambda t: t.__setitem__("added_tokens", entries))(folder)
        edit_json("tokenizer_config.json", lambda t: t.update(named))(folder)

    return after


STEALTH_FAULTS = (
    Fault(
        "two experts' block scales exchanged",
        "FF090",
        exchange(DOWN, f"{TEXT}.1.experts.6.down_proj", "block_scale"),
        blind=False,
    ),
    Fault(
        "two experts' codes exchanged",
        "FF086",
        exchange(DOWN, f"{TEXT}.1.experts.6.down_proj", "packed_weight"),
        blind=False,
        also=("FF081", "FF086", "FF090"),
    ),
    Fault(
        "block scales of one row rolled by one",
        "FF095",
        change(f"{DENSE}.down_proj", "block_scale", roll_row),
        blind=False,
        also=("FF091",),
    ),
    Fault(
        "one bit of one code flipped",
        "FF097",
        change(UP, "packed_weight", flip_code_bit(2)),
        blind=False,
        also=("FF091",),
    ),
    Fault(
        "the sign of one code flipped",
        "FF097",
        change(UP, "packed_weight", flip_code_bit(3)),
        blind=False,
        also=("FF091",),
    ),
    Fault("gate's and up's global scale both off by a tenth", "FF096", scale_group_by((GATE, UP), 1.1), blind=False),
    Fault("down's global scale off by a twentieth", "FF096", scale_group_by((DOWN,), 0.95), blind=False),
    Fault("all signs turned", "FF083", change(UP, "packed_weight", lambda t: t ^ 0x88), blind=False),
    Fault(
        "noise of a third of the weight",
        "FF081",
        requantize(UP, lambda w: w + 0.34 * w.float().std() * torch.randn(w.shape)),
        blind=False,
        also=("FF091",),
    ),
    Fault(
        "rows exchanged beyond the first ones",
        "FF098",
        requantize(f"{DENSE}.up_proj", lambda w: w[[*range(40), 41, 40, *range(42, w.shape[0])]]),
        blind=False,
    ),
    Fault(
        "attention heads permuted",
        "FF089",
        requantize(f"{ATTENTION}.o_proj", lambda w: w.roll(16, dims=1)),
        blind=False,
    ),
    Fault(
        "an expert written over another", "FF073", copy_module(DOWN, f"{TEXT}.1.experts.7.down_proj"), also=("FF086",)
    ),
    Fault(
        "a layer's experts written over another's",
        "FF073",
        lambda e, _: [
            copy_module(f"{TEXT}.0.experts.{n}.{p}", f"{TEXT}.1.experts.{n}.{p}")(e, _)
            for n in range(EXPERTS)
            for p in ("gate_proj", "up_proj", "down_proj")
        ],
        also=("FF086",),
    ),
    # what toolchains leave undone
    Fault("no expert quantized, as if on purpose", "FF020", fuse_everything),
    Fault("input scales missing for all experts", "FF104", drop_all_experts_inputs, also=("FF026",)),
    Fault("a pre_quant_scale of AWQ left over", "FF027", store(f"{GATE}.pre_quant_scale", torch.ones(64))),
    Fault(
        "lm_head quantized",
        "FF030",
        lambda e, _: (e.tensors.__setitem__("lm_head.weight", torch.ones(256, 64)), quantize_kept("lm_head")(e, _)),
        also=("FF107", "FF031", "FF027"),
    ),
    Fault(
        "vision tensors under another prefix",
        "FF033",
        rename("model.vision_tower.", "vision_tower."),
        also=("FF028", "FF106", "FF108"),
    ),
    Fault(
        "experts under mlp.experts", "FF033", rename(f"{TEXT}.1.experts.", f"{TEXT}.1.mlp.experts."), also=("FF022",)
    ),
    Fault(
        "one expert matrix under its name in vLLM",
        "FF033",
        rename(f"{EXPERT}.up_proj.", f"{EXPERT}.w3."),
        also=("FF020",),
    ),
    # tokens
    Fault(
        "a tokenizer whose image token is another's",
        "FF125",
        lambda e, _: e.config.__setitem__("image_token_id", 7),
        after=_tokens_of({"<img>": 9}, {"image_token": "<img>"}),
        also=("FF112", "FF124"),
    ),
    Fault("a vocabulary larger than the embedding", "FF125", after=_tokens_of({"<big>": 256}, {}), also=("FF124",)),
    Fault(
        "a chat template with another role's token",
        "FF126",
        after=write("chat_template.jinja", "{{ '<|im_start|>' }}{{ messages }}"),
        also=("FF124",),
    ),
)
