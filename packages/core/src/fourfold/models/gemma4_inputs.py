"""What stands in front of each Gemma 4 linear, and what that lets its input be, whatever the tokens.

Attention's q, k and v, the dense gate and up, and the experts' gate and up each read an RMS norm's output ``x = g *
n`` with ``sum(n^2) <= H``. The output projection reads, head by head, a convex combination of values that an RMS norm
without a weight made (``v_norm``), so ``sum(x^2) <= K``: the same with ``g = 1``. ``down`` reads ``gelu(gate) * up``,
and ``|gelu(z)| <= |z|``.

Source: transformers ``models/gemma4/modeling_gemma4.py`` (``Gemma4TextDecoderLayer``, ``Gemma4TextAttention``,
``Gemma4RMSNorm``, ``Gemma4TextMLP``, ``Gemma4TextExperts``).
Shape letters: H hidden, K in features.
"""

from __future__ import annotations

from fourfold.models.gemma4 import LinearModule, ModuleKind

_BEFORE = {
    ModuleKind.ATTENTION: "input_layernorm",
    ModuleKind.DENSE_MLP: "pre_feedforward_layernorm",
    ModuleKind.EXPERT: "pre_feedforward_layernorm_2",
}


def norm_before(module: LinearModule) -> str | None:
    """Name of the norm's weight [H] whose output the linear reads; None for ``o_proj`` and ``down_proj``."""
    if module.projection in ("o_proj", "down_proj"):
        return None
    parent = {ModuleKind.ATTENTION: ".self_attn.", ModuleKind.DENSE_MLP: ".mlp.", ModuleKind.EXPERT: ".experts."}
    layer = module.name.rpartition(parent[module.kind])[0]
    return f"{layer}.{_BEFORE[module.kind]}.weight"


def gate_and_up(module: LinearModule) -> tuple[str, str] | None:
    """The two linears whose product a ``down_proj`` reads; None for any other linear."""
    if module.projection != "down_proj":
        return None
    parent = module.name.rpartition(".")[0]
    return f"{parent}.gate_proj", f"{parent}.up_proj"
