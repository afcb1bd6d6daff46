"""Faults in scales and codes."""

from __future__ import annotations

import torch

from .faults import Fault
from .planting_tensors import (
    ATTENTION,
    DENSE,
    DENSE_GATE,
    DOWN,
    FP8,
    HEADROOM,
    QKV,
    UP,
    change,
    change_k_scales,
    fill,
    scale_by,
    set_bytes,
    turn,
    turn_all,
    wide_global_scale,
)

SCALE_FAULTS = (
    # block scales
    Fault("one NaN block scale", "FF050", set_bytes(UP, "block_scale", 0x7F, 1)),
    Fault("one negative NaN block scale", "FF050", set_bytes(UP, "block_scale", 0xFF, 1)),
    Fault("negative block scale", "FF051", set_bytes(UP, "block_scale", 0xB8, 1), also=("FF091",)),
    Fault("all block scales zero", "FF052", set_bytes(UP, "block_scale", 0, None), also=("FF081", "FF090")),
    Fault(
        "a third of the block scales flushed to zero",
        "FF053",
        set_bytes(UP, "block_scale", 0, 64),
        also=("FF081", "FF090", "FF091"),
    ),
    Fault(
        "global scale 2^16 too large, blocks subnormal",
        "FF053",
        wide_global_scale,
        also=("FF060", "FF062", "FF081", "FF090", "FF083", "FF058", "FF091"),
    ),
    Fault("block scales all one", "FF054", fill(UP, "block_scale", 1.0), also=("FF081", "FF083", "FF090")),
    # global and input scales
    Fault("global scale zero", "FF055", fill(DOWN, "global_scale", 0.0)),
    Fault("global scale infinite", "FF055", fill(DOWN, "global_scale", float("inf"))),
    Fault("global scale NaN", "FF055", fill(DOWN, "global_scale", float("nan"))),
    Fault("global scale negative", "FF055", change(DOWN, "global_scale", torch.neg)),
    Fault("input scale zero", "FF056", fill(DOWN, "input_global_scale", 0.0)),
    Fault("input scale infinite", "FF056", fill(DOWN, "input_global_scale", float("inf"))),
    Fault("input scale NaN", "FF056", fill(DOWN, "input_global_scale", float("nan"))),
    Fault("input scale denormal", "FF057", fill(DOWN, "input_global_scale", 1e-40), also=("FF056",)),
    Fault("global scale denormal", "FF057", fill(DOWN, "global_scale", 1e-41), also=("FF055", "FF081")),
    Fault("one global scale reciprocal", "FF058", turn((DOWN,), "global_scale"), also=("FF082",)),
    Fault("a reciprocal told by the source", "FF082", turn((DOWN,), "global_scale"), also=("FF058",), blind=False),
    Fault("all global scales reciprocal", "FF058", turn_all("global_scale"), also=("FF082",)),
    Fault("one input scale reciprocal", "FF059", turn((DOWN,), "input_global_scale"), also=("FF061",)),
    Fault("all input scales reciprocal", "FF059", turn_all("input_global_scale"), also=("FF061",)),
    Fault("q, k and v: input scales reciprocal", "FF059", turn(QKV, "input_global_scale"), also=("FF061",)),
    Fault(
        "every down_proj: input scale reciprocal", "FF059", turn_all("input_global_scale", "down_proj"), also=("FF061",)
    ),
    Fault(
        "headroom beside a reciprocal",
        "FF059",
        scale_by(DENSE_GATE, "input_global_scale", 90.0),
        also=("FF061", "FF063"),
        variant=HEADROOM,
    ),
    Fault("global scale of junk memory", "FF060", scale_by(DOWN, "global_scale", 1e-20), also=("FF081", "FF083")),
    Fault("input scale of junk memory", "FF061", scale_by(DOWN, "input_global_scale", 1e-20)),
    Fault("gate and up with two global scales", "FF062", scale_by(UP, "global_scale", 2.0), also=("FF083",)),
    Fault("gate and up one ulp apart", "FF062", change(UP, "global_scale", lambda t: torch.nextafter(t, t * 2))),
    Fault(
        "q and k with two global scales", "FF062", scale_by(f"{ATTENTION}.k_proj", "global_scale", 1.5), also=("FF083",)
    ),
    Fault("dense gate and up with two input scales", "FF063", scale_by(f"{DENSE}.up_proj", "input_global_scale", 1.25)),
    Fault("expert gate and up with two input scales", "FF063", scale_by(UP, "input_global_scale", 1.5)),
    Fault("a KV scale zero", "FF064", change_k_scales(torch.zeros_like), variant=FP8),
    Fault("a KV scale of no number", "FF064", change_k_scales(lambda t: t.reshape(-1)[:0]), variant=FP8),
    Fault(
        "a KV scale for each head", "FF064", change_k_scales(lambda t: t.reshape(1, 1, 1).repeat(2, 1, 1)), variant=FP8
    ),
    Fault(
        "a KV scale of integers", "FF064", change_k_scales(lambda t: torch.ones_like(t, dtype=torch.int64)), variant=FP8
    ),
    # codes
    Fault("codes all zero", "FF070", set_bytes(UP, "packed_weight", 0, None), also=("FF081",)),
    Fault("codes all minus zero", "FF070", set_bytes(UP, "packed_weight", 0x88, None), also=("FF081",)),
    Fault("codes all equal", "FF071", set_bytes(UP, "packed_weight", 0x72, None), also=("FF081",)),
    Fault("only small codes", "FF072", change(UP, "packed_weight", lambda t: t & 0x99), also=("FF081", "FF083")),
)
