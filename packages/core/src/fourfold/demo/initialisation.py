"""The untrained model: Transformers' Gemma 4 with starting values that let a small one learn.

Gemma 4 normalises every sublayer's output before it joins the residual stream, so at unit norm weights the first
attention's average over all positions drowns the inputs, and a vision tower learns colours but never shapes. Inputs
therefore start at unit size and sublayer outputs at a fraction of it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fourfold.demo.architecture import model_config
from fourfold.demo.recipe import Recipe

_POST_NORMS = ("post_attention_layernorm", "post_feedforward_layernorm")


def build_model(recipe: Recipe, device: torch.device) -> Any:
    """The untrained model in BF16 on ``device``, in training mode, its experts computed by grouped products."""
    from transformers import AutoModelForImageTextToText, Gemma4Config

    torch.manual_seed(recipe.seed)
    model = AutoModelForImageTextToText.from_config(Gemma4Config(**model_config()), dtype=torch.float32)
    model.set_experts_implementation("grouped_mm")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            _initialise(name, parameter, recipe)
        for layer in model.model.language_model.layers:
            layer.layer_scalar.fill_(recipe.initial_layer_scalar)
    return model.to(device=device, dtype=torch.bfloat16).train()


def _initialise(name: str, parameter: nn.Parameter, recipe: Recipe) -> None:
    parts = name.split(".")
    module = parts[-2] if parts[-1] == "weight" else parts[-1]
    if module == "q_norm":
        # Gemma 4 does not scale its attention logits: the query norm's weight does.
        nn.init.constant_(parameter, parameter.shape[0] ** -0.5)
    elif module in _POST_NORMS:
        nn.init.constant_(parameter, recipe.initial_post_norm)
    elif module == "position_embedding_table":
        nn.init.normal_(parameter, std=0.3)
    elif module == "input_proj":
        # Pixels are within +-1 and mostly grey.
        nn.init.normal_(parameter, std=2 * parameter.shape[-1] ** -0.5)
    elif parameter.dim() >= 2:
        nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
