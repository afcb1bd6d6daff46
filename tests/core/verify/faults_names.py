"""Faults in what is stored: experts, names, dtypes and shapes."""

from __future__ import annotations

import torch

from .faults import Fault
from .good_checkpoints import EXPERT, EXPERTS, TEXT
from .planting_tensors import (
    ATTENTION,
    DOWN,
    GATE,
    UP,
    W4A16,
    change,
    drop,
    drop_modules,
    drop_part,
    edit,
    fuse_layer,
    fused_beside,
    move,
    other_layout,
    quantize_kept,
    rename,
    store,
)

NAME_FAULTS = (
    # experts
    Fault("an expert is missing", "FF020", drop_modules(f"{EXPERT}.")),
    Fault("one matrix of an expert is missing", "FF020", drop_modules(f"{DOWN}.")),
    Fault("one expert left in BF16", "FF021", drop_modules(f"{EXPERT}.", True), also=("FF106",)),
    Fault("a skipped layer, experts fused", "FF022", fuse_layer(1), also=("FF106",)),
    Fault("a skipped layer, nothing stored", "FF022", drop_modules(f"{TEXT}.1.experts.")),
    Fault(
        "experts.12 of 12",
        "FF023",
        move(f"{TEXT}.1.experts.11.", f"{TEXT}.1.experts.{EXPERTS}."),
        also=("FF073",),
    ),
    Fault("router quantized", "FF030", quantize_kept(f"{TEXT}.0.router.proj"), also=("FF107",)),
    Fault(
        "a vision linear quantized",
        "FF030",
        quantize_kept("model.vision_tower.encoder.layers.0.mlp.up_proj.linear"),
        also=("FF107",),
    ),
    Fault("embed_vision quantized", "FF030", quantize_kept("model.embed_vision.embedding_projection"), also=("FF107",)),
    Fault("fused experts beside the quantized ones", "FF032", fused_beside, also=("FF106",)),
    Fault("one of q, k, v left in BF16", "FF035", drop_modules(f"{ATTENTION}.k_proj.", True), also=("FF106",)),
    # names and parts
    Fault("block scale missing", "FF024", drop_part(UP, "block_scale")),
    Fault("global scale missing", "FF024", drop_part(UP, "global_scale")),
    Fault("packed weight missing", "FF024", drop_part(UP, "packed_weight")),
    Fault("input scale missing for one expert", "FF025", drop_part(DOWN, "input_global_scale")),
    Fault(
        "an input scale in a weights-only checkpoint",
        "FF026",
        lambda e, _: e.put(DOWN, "input_global_scale", e.part(DOWN, "global_scale")),
        variant=W4A16,
    ),
    Fault("a scale under an unknown suffix", "FF027", store(f"{GATE}.weight_scale_3", torch.ones(1))),
    Fault("a leaked _double_scale", "FF027", store(f"{GATE}._double_scale", torch.ones(4, 4))),
    Fault("a layer too many", "FF027", store(f"{TEXT}.3.layer_scalar", torch.ones(1, dtype=torch.bfloat16))),
    Fault("a norm missing", "FF028", drop(f"{TEXT}.2.input_layernorm.weight")),
    Fault("the router missing", "FF028", drop(f"{TEXT}.1.router.proj.weight")),
    Fault("a vision tensor missing", "FF028", drop("model.vision_tower.std_scale")),
    Fault("q_proj missing", "FF028", drop_modules(f"{ATTENTION}.q_proj."), also=("FF035",)),
    Fault("layer_scalar lost", "FF029", drop(f"{TEXT}.2.layer_scalar")),
    Fault("a tied lm_head stored", "FF031", store("lm_head.weight", torch.ones(256, 64, dtype=torch.bfloat16))),
    Fault(
        "an untied lm_head lost",
        "FF031",
        lambda e, _: e.config.__setitem__("tie_word_embeddings", False),
        also=("FF112",),
    ),
    Fault(
        "names as inside vLLM",
        "FF033",
        rename("model.language_model.layers.1.router", "language_model.model.layers.1.router"),
        also=("FF028", "FF106", "FF108"),
    ),
    Fault(
        "experts under moe.experts",
        "FF033",
        rename(f"{TEXT}.1.experts.", f"{TEXT}.1.moe.experts."),
        also=("FF022", "FF132"),
    ),
    Fault("two layouts mixed", "FF034", other_layout, also=("FF027",)),
    # dtype and shape
    Fault("block scale as BF16", "FF040", change(UP, "block_scale", lambda t: t.to(torch.bfloat16))),
    Fault("global scale as BF16", "FF040", change(UP, "global_scale", lambda t: t.to(torch.bfloat16))),
    Fault("packed weight transposed in shape", "FF041", change(DOWN, "packed_weight", torch.t)),
    Fault("block scales of blocks of 32", "FF041", change(UP, "block_scale", lambda t: t[:, ::2])),
    Fault("a scale per row", "FF041", change(UP, "global_scale", lambda t: t.reshape(1).repeat(48))),
    Fault(
        "empty tensors from offload", "FF041", change(UP, "packed_weight", lambda t: torch.empty(0, dtype=torch.uint8))
    ),
    Fault("a norm in float32", "FF042", edit(f"{TEXT}.0.input_layernorm.weight", lambda t: t.float()), blind=False),
    Fault("a norm of another width", "FF042", edit(f"{TEXT}.0.input_layernorm.weight", lambda t: t[:32])),
    Fault("a norm one value short", "FF042", edit(f"{TEXT}.0.input_layernorm.weight", lambda t: t[:-1])),
    Fault("a norm of one number", "FF042", edit(f"{TEXT}.0.input_layernorm.weight", lambda t: t[0])),
)
