from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import Gemma4ForCausalLM, Gemma4TextConfig

LAYERS, EXPERTS, TOP_K, HIDDEN, WIDTH, VOCAB = 3, 16, 4, 64, 48, 128

MakeModel = Callable[..., Gemma4ForCausalLM]


@pytest.fixture
def make_model() -> MakeModel:
    """A random Gemma 4 MoE; eager experts, as only there a hook on a linear fires."""

    def make(dtype: torch.dtype = torch.float32, device: str = "cpu", width: int = WIDTH) -> Gemma4ForCausalLM:
        config = Gemma4TextConfig(
            vocab_size=VOCAB,
            hidden_size=HIDDEN,
            intermediate_size=96,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            global_head_dim=32,
            enable_moe_block=True,
            num_experts=EXPERTS,
            top_k_experts=TOP_K,
            moe_intermediate_size=width,
            max_position_embeddings=256,
            hidden_size_per_layer_input=0,
            num_kv_shared_layers=0,
            sliding_window=64,
            layer_types=["sliding_attention"] * (LAYERS - 1) + ["full_attention"],
            dtype=dtype,
        )
        with torch.device(device):
            model = Gemma4ForCausalLM(config).to(dtype).eval()
        model.config._experts_implementation = "eager"
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1 and not parameter.is_meta:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
        return model

    return make


@pytest.fixture
def input_ids() -> torch.Tensor:
    return torch.randint(0, VOCAB, (3, 50), generator=torch.Generator().manual_seed(2))
