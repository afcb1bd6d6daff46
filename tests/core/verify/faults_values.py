"""Faults that only the source can tell, and kept tensors that cannot be right."""

from __future__ import annotations

import torch

from .faults import Fault
from .good_checkpoints import TEXT
from .planting_feedback import OVERFIT, feed_back, moved_under
from .planting_tensors import (
    DENSE_GATE,
    DOWN,
    GATE,
    UP,
    change,
    edit,
    flip_bit,
    flip_exponent,
    interleave,
    other_router,
    put_at,
    requantize,
    rotate_experts,
    scale_by,
    set_bytes,
    swap,
    transposed_scales,
)

VALUE_FAULTS = (
    # values against the source
    Fault("a norm changed by one bit", "FF080", edit(f"{TEXT}.1.input_layernorm.weight", flip_bit), blind=False),
    Fault("layer_scalar changed", "FF080", edit(f"{TEXT}.1.layer_scalar", lambda t: t * 0.5), blind=False),
    Fault("the router of another layer", "FF080", other_router, blind=False),
    Fault("the vision tower changed", "FF080", edit("model.vision_tower.std_bias", lambda t: t + 1), blind=False),
    Fault(
        "an embedding row changed",
        "FF080",
        edit("model.language_model.embed_tokens.weight", put_at(255, 1.0)),
        blind=False,
    ),
    Fault("a random weight", "FF081", requantize(UP, lambda w: torch.randn_like(w) * 0.02), blind=False),
    Fault("global scale off by 1.5", "FF083", scale_by(DOWN, "global_scale", 1.5), blind=False),
    Fault("nibbles swapped", "FF084", change(UP, "packed_weight", lambda t: (t << 4) | (t >> 4)), blind=False),
    Fault("gate and up swapped", "FF085", swap(GATE, UP), blind=False),
    Fault("two experts exchanged", "FF086", swap(DOWN, f"{TEXT}.1.experts.6.down_proj"), blind=False),
    Fault("experts permuted", "FF086", rotate_experts, blind=False, also=("FF062", "FF063")),
    Fault("two layers exchanged", "FF086", swap(DOWN, f"{TEXT}.0.experts.5.down_proj"), blind=False),
    Fault("weight transposed", "FF087", requantize(UP, lambda w: w.t().reshape(w.shape)), blind=False),
    Fault("gate and up rows interleaved", "FF088", interleave, blind=False),
    Fault("rows shifted by padding", "FF088", requantize(DOWN, lambda w: w.roll(4, dims=0)), blind=False),
    Fault("columns shifted", "FF089", requantize(DOWN, lambda w: w.roll(16, dims=1)), blind=False),
    Fault("block scales transposed", "FF090", change(UP, "block_scale", transposed_scales), blind=False),
    Fault(
        "one block scale with a flipped exponent bit",
        "FF091",
        change(UP, "block_scale", flip_exponent),
        also=("FF095",),
        blind=False,
    ),
    Fault("one block of codes zeroed", "FF091", set_bytes(UP, "packed_weight", 0, 8), blind=False),
    Fault("one block of codes zeroed under error feedback", "FF091", feed_back(DENSE_GATE, zeroed=True), blind=False),
    Fault("error feedback under a global scale a tenth too large", "FF096", moved_under(1.1), blind=False),
    Fault("error feedback under a global scale a twentieth too small", "FF096", moved_under(0.95), blind=False),
    Fault("error feedback past rounding", "FF094", feed_back(DENSE_GATE, OVERFIT), blind=False),
    Fault("NaN in a norm", "FF092", edit(f"{TEXT}.0.input_layernorm.weight", put_at(1, torch.nan)), also=("FF080",)),
    Fault(
        "a norm all infinite",
        "FF092",
        edit(f"{TEXT}.0.input_layernorm.weight", lambda t: t + torch.inf),
        also=("FF080",),
    ),
    Fault("layer_scalar zero", "FF093", edit(f"{TEXT}.1.layer_scalar", torch.zeros_like), also=("FF080",)),
)
