"""Scale groups: what a server fuses gets one global scale and one input scale.

The largest amax of the group, as ModelOpt's own export takes it. Block scales are computed afterwards against the
shared scale, so nothing is rescaled and nothing overflows.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from modelopt.torch.quantization.nn import TensorQuantizer

from fourfold_modelopt.linears import QuantizedLinear


def share_scales(linears: Iterable[QuantizedLinear]) -> None:
    """Unify weight and input amaxes inside every scale group, in place."""
    groups: dict[str, list[QuantizedLinear]] = {}
    for linear in linears:
        groups.setdefault(linear.module.scale_group, []).append(linear)
    for members in groups.values():
        if len(members) > 1:
            _share([linear.weight_quantizer for linear in members])
            _share([linear.input_quantizer for linear in members if linear.input_quantizer.is_enabled])


def _share(quantizers: list[TensorQuantizer]) -> None:
    # A static quantizer keeps its blocks' amaxes in `amax` and the tensor's beside it.
    attribute = "global_amax" if getattr(next(iter(quantizers), None), "global_amax", None) is not None else "amax"
    values = [value for q in quantizers if (value := getattr(q, attribute)) is not None]
    if values:
        largest = torch.stack([value.reshape(()) for value in values]).max()
        for quantizer in quantizers:
            setattr(quantizer, attribute, largest)
