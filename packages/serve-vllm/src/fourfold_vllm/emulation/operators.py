"""The two products as torch operators, opaque to ``torch.compile``.

vLLM compiles the model around them. What is inside must not be traced: routing depends on data, and a compiler that
reorders float32 arithmetic moves roundings. So eager and compiled runs compute the same here.

A weight is uint8 with its block scale (decoded here, at every use), or decoded already, with ``block_scale`` None.
``encode_scale`` None leaves activations as they are.

Shape letters: T tokens, R rows (token, expert pairs), H model dim, I intermediate dim, F = 2I, E experts, k = top-k.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch.nn import functional

from fourfold_vllm.emulation.numerics import decode_blocks, product, quantize_activations

#: Gate activations by vLLM's names.
ACTIVATIONS: Final[dict[str, Callable[[torch.Tensor], torch.Tensor]]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
}
#: Rows of experts computed together; bounds the float32 temporaries.
_MAX_ROWS = 4096


def _weight(weight: torch.Tensor, block_scale: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    return weight if block_scale is None else decode_blocks(weight, block_scale, dtype)


@torch.library.custom_op("fourfold::nvfp4_linear", mutates_args=())
def nvfp4_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    block_scale: torch.Tensor | None,
    output_scale: torch.Tensor,
    encode_scale: torch.Tensor | None,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """``x`` [..., K] times a weight [O, K], in ``x``'s dtype; ``output_scale`` float32 [] multiplies the sum."""
    rows = x.reshape(-1, x.shape[-1])
    if encode_scale is not None:
        rows = quantize_activations(rows, encode_scale)
    out = product(rows, _weight(weight, block_scale, x.dtype)).mul_(output_scale)
    if bias is not None:
        out += bias
    return out.to(x.dtype).view(*x.shape[:-1], out.shape[-1])


@nvfp4_linear.register_fake
def _nvfp4_linear_shape(x: torch.Tensor, weight: torch.Tensor, *_: torch.Tensor | None) -> torch.Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


@torch.library.custom_op("fourfold::nvfp4_experts", mutates_args=())
def nvfp4_experts(
    x_TH: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    expert_map: torch.Tensor | None,
    w13: torch.Tensor,
    w13_block_scale: torch.Tensor | None,
    w13_output_scale_E: torch.Tensor,
    w13_encode_scale_E: torch.Tensor | None,
    w2: torch.Tensor,
    w2_block_scale: torch.Tensor | None,
    w2_output_scale_E: torch.Tensor,
    w2_encode_scale_E: torch.Tensor | None,
    activation: str,
) -> torch.Tensor:
    """Routed experts, [T, H] in ``x_TH``'s dtype: gate and up, activation, down, weighted sum over the top k.

    ``w13`` holds gate rows first, then up. Scales are float32, one an expert. ``expert_map`` [E global] gives the local
    index of an expert, or -1 where another rank has it. Weighting and sum are float32, in the order of ``topk_ids``.
    """
    num_tokens, k = topk_ids.shape
    ids = topk_ids.long() if expert_map is None else expert_map[topk_ids.long()].long()
    ids = ids.reshape(-1)
    order = ids.argsort(stable=True)
    order = order[ids[order] >= 0]
    out = torch.zeros(num_tokens * k, x_TH.shape[1], dtype=torch.float32, device=x_TH.device)
    for rows, segments in _groups(ids, order):
        experts = ids[rows]
        gate_up = _grouped(
            x_TH[rows // k], w13, w13_block_scale, w13_output_scale_E, w13_encode_scale_E, experts, segments
        )
        gate, up = gate_up.to(torch.float32).chunk(2, dim=-1)
        hidden = (ACTIVATIONS[activation](gate) * up).to(x_TH.dtype)
        down = _grouped(hidden, w2, w2_block_scale, w2_output_scale_E, w2_encode_scale_E, experts, segments)
        out[rows] = down.to(torch.float32) * topk_weights.reshape(-1)[rows].to(torch.float32).unsqueeze(-1)
    return out.view(num_tokens, k, -1).sum(1).to(x_TH.dtype)


@nvfp4_experts.register_fake
def _nvfp4_experts_shape(x_TH: torch.Tensor, *_: torch.Tensor | str | None) -> torch.Tensor:
    return torch.empty_like(x_TH)


def _groups(ids: torch.Tensor, order: torch.Tensor) -> list[tuple[torch.Tensor, list[tuple[int, int]]]]:
    """Rows sorted by expert, cut between experts, with each expert's (index, number of rows).

    An expert is in one group only, so it is decoded once; one with more rows than :data:`_MAX_ROWS` is a group alone.
    """
    experts, counts = ids[order].unique_consecutive(return_counts=True)  # type: ignore[no-untyped-call]
    groups: list[tuple[torch.Tensor, list[tuple[int, int]]]] = []
    segments: list[tuple[int, int]] = []
    first = stop = 0
    for expert, count in zip(experts.tolist(), counts.tolist(), strict=True):
        if segments and stop + count - first > _MAX_ROWS:
            groups.append((order[first:stop], segments))
            segments, first = [], stop
        segments.append((expert, count))
        stop += count
    return [*groups, (order[first:stop], segments)] if segments else groups


def _grouped(
    x_RK: torch.Tensor,
    weight_EOK: torch.Tensor,
    block_scale: torch.Tensor | None,
    output_scale_E: torch.Tensor,
    encode_scale_E: torch.Tensor | None,
    experts_R: torch.Tensor,
    segments: list[tuple[int, int]],
) -> torch.Tensor:
    """Each expert's rows times its weight, [R, O] in ``x_RK``'s dtype."""
    rows = x_RK if encode_scale_E is None else quantize_activations(x_RK, encode_scale_E[experts_R])
    parts = []
    pieces = torch.split(rows, [count for _, count in segments])
    for piece, (expert, _) in zip(pieces, segments, strict=True):
        scale = None if block_scale is None else block_scale[expert]
        parts.append(product(piece, _weight(weight_EOK[expert], scale, x_RK.dtype)))
    return torch.cat(parts).mul_(output_scale_E[experts_R].unsqueeze(-1)).to(x_RK.dtype)
