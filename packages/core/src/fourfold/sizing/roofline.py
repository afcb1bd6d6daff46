"""Tokens a second of one sequence: a roofline of memory traffic with a floor under every kernel.

At batch 1 a GPU waits for weights. A kernel that reads ``b`` bytes takes ``max(KERNEL_S, b / (BYTES_SHARE x
bandwidth))``: either the memory decides, or what a kernel costs whatever it does (launch, ramp, tail). A token is

    sum over layers of  q+k+v, output, dense gate+up, dense down, router, expert gate+up, expert down, attention's cache
    + the head,
    + ``SMALL_KERNELS`` kernels a layer that move next to nothing (norms, rotary, routing, activations), a floor each.

Both constants are one for all GPUs, recipes and engines. They were fitted to the eight speeds of the 26B in
``tests/core/sizing/published.py``, by least squares on the logarithm; docs/sizing.md has each row's error, and the
error when that row is left out of the fit. W4A4 and W4A16 read the same bytes and get the same prediction: which of the
two kernels a server has is not in the model. Not in it either: batches, prefill, speculative decoding, several GPUs.
"""

from __future__ import annotations

from fourfold.models.gemma4 import ModuleKind
from fourfold.plan import BYTES_PER_WEIGHT
from fourfold.sizing.shapes import LayerShape, ModelShape
from fourfold.sizing.sizes import BF16_BYTES, Choose

#: Share of the published bandwidth that kernels reach on average.
BYTES_SHARE = 0.77
#: Least time of a kernel, seconds.
KERNEL_S = 6.0e-6
#: Kernels of a layer beside those that read weights or the cache.
SMALL_KERNELS = 14

#: Projections a server multiplies in one kernel.
_FUSED = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",))


def tokens_per_second(
    shape: ModelShape,
    chosen: Choose,
    bandwidth: float,
    *,
    context: int,
    kv_bytes: int,
    share: float = BYTES_SHARE,
    kernel_s: float = KERNEL_S,
) -> float:
    """Decoding speed of one sequence with ``context`` tokens behind it; ``bandwidth`` in bytes a second."""
    seconds = sum(
        max(kernel_s, count / (share * bandwidth)) for count in kernel_bytes(shape, chosen, context, kv_bytes)
    )
    return 1 / (seconds + kernel_s * SMALL_KERNELS * len(shape.layers))


def bytes_per_token(shape: ModelShape, chosen: Choose, *, context: int, kv_bytes: int) -> float:
    """Bytes read for one token."""
    return sum(kernel_bytes(shape, chosen, context, kv_bytes))


def kernel_bytes(shape: ModelShape, chosen: Choose, context: int, kv_bytes: int) -> list[float]:
    """Bytes that each of the large kernels reads for one token."""
    found: list[float] = []
    for layer in shape.layers:
        for kind in ModuleKind:
            width = BYTES_PER_WEIGHT if chosen(layer.index, kind) else BF16_BYTES
            found += [numel * width for numel in _kernels(layer, kind)]
        found.append(layer.router_numel * BF16_BYTES)
        seen = context if layer.window is None else min(context, layer.window)
        found.append(2 * layer.key_width * kv_bytes * seen)
    return [*found, (shape.head_numel or shape.embedding_numel) * BF16_BYTES]


def _kernels(layer: LayerShape, kind: ModuleKind) -> list[int]:
    """Weights read by each fused kernel of a role; keys stand in for values where there is no ``v_proj``."""
    weights = {linear.projection: linear.active_numel for linear in layer.linears if linear.kind is kind}
    if "k_proj" in weights:
        weights.setdefault("v_proj", weights["k_proj"])
    sums = (sum(weights.get(name, 0) for name in names) for names in _FUSED)
    return [numel for numel in sums if numel]
