"""Measure what un-fusing adds to resident memory, in a fresh process; prints JSON."""

import gc
import json
import os
from pathlib import Path

import torch
from transformers import Gemma4ForCausalLM, Gemma4TextConfig

from fourfold.reference.options import ReferenceUnfuserOptions
from fourfold.reference.unfuser import ReferenceUnfuser


def resident_bytes() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    config = Gemma4TextConfig(
        vocab_size=512,
        hidden_size=704,
        intermediate_size=256,
        num_hidden_layers=4,
        layer_types=["full_attention"] * 4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        global_head_dim=32,
        enable_moe_block=True,
        num_experts=16,
        top_k_experts=4,
        moe_intermediate_size=640,
        hidden_size_per_layer_input=0,
        num_kv_shared_layers=0,
        dtype=torch.bfloat16,
    )
    with torch.device("meta"):
        model = Gemma4ForCausalLM(config)
    model = model.to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.data.fill_(0.01)  # touch every page
    unfuser = ReferenceUnfuser(ReferenceUnfuserOptions())
    before = resident_bytes()
    unfuser.unfuse(model)
    after = resident_bytes()
    num_linears = sum(".experts." in name for name, _ in model.named_parameters())
    unfuser.fuse(model)
    fused = resident_bytes()
    measured = {
        "parameter_bytes": sum(parameter.nbytes for parameter in model.parameters()),
        "num_linears": num_linears,
        "growth_bytes": after - before,
        "growth_after_fuse_bytes": fused - before,
    }
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
