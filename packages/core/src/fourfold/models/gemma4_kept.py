"""Which linears of a Gemma 4 mixture of experts stay unquantized, by the names that servers look for."""

from __future__ import annotations

from collections.abc import Mapping

from fourfold.models.gemma4 import fused_linears, values_read_from_keys


def unquantized_linears(kept: Mapping[str, tuple[int, ...]]) -> list[str]:
    """The linears among ``kept``, names and shapes of unquantized tensors; sorted.

    Each 2-D ``weight`` but embeddings is one, every matrix of experts left fused, ``lm_head`` always (its weight is
    tied), and with unquantized keys the values that are read from them. A server must be told of all of these.
    """
    names = {"lm_head"}
    for name, shape in kept.items():
        module, _, leaf = name.rpartition(".")
        if leaf == "weight" and len(shape) == 2 and not module.rpartition(".")[2].startswith("embed_tokens"):
            names.add(module)
        names |= {linear.name for linear in fused_linears(name, shape)}
    return sorted(names | values_read_from_keys(names))
