"""Poison: what no checkpoint holds, written into every parameter before loading.

NaN for floats, also float8. For bytes 0x88, two E2M1 codes of minus zero: a single such byte is possible, so a byte
counts as poisoned only where no key was written either (:mod:`fourfold_vllm.load_check.trace`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import torch

_BYTE = 0x88
#: vLLM has defaults for these, and a checkpoint may lack them.
OPTIONAL = ("q_scale", "k_scale", "v_scale", "prob_scale", "q_zero_point", "k_zero_point", "v_zero_point")
#: vLLM makes these for weights-only modules too, which have none, and drops them after loading.
_INPUT_SCALES = ("input_scale", "input_global_scale")


def loadable(model: torch.nn.Module, keys: Iterable[str]) -> dict[str, torch.Tensor]:
    """Every parameter, and those buffers whose last name some key ends with (such as ``layer_scalar``), by name."""
    leaves = {key.rpartition(".")[2] for key in keys}
    found = {name: parameter.data for name, parameter in model.named_parameters()}
    persistent = model.state_dict()
    found |= {n: b for n, b in model.named_buffers() if n in persistent and n.rpartition(".")[2] in leaves}
    alone = {name for name, module in model.named_modules() if _is_weights_only(module)}
    return {name: tensor for name, tensor in found.items() if tensor.numel() and not _is_optional(name, alone)}


def _is_weights_only(module: torch.nn.Module) -> bool:
    """Whether vLLM computes this NVFP4 module with unquantized activations."""
    method = getattr(module, "quant_method", None)
    if (spec := getattr(method, "spec", None)) is not None:  # a linear of ModelOpt's layout
        return spec.activation is None
    return any(getattr(part, "use_a16", False) for part in (method, getattr(module, "scheme", None)))


def _is_optional(name: str, weights_only: Collection[str]) -> bool:
    return name.endswith(OPTIONAL) or (name.endswith(_INPUT_SCALES) and name.rpartition(".")[0] in weights_only)


def poison(tensors: Iterable[torch.Tensor]) -> None:
    """Fill each with its sentinel."""
    for tensor in tensors:
        if tensor.is_floating_point():
            tensor.fill_(float("nan"))
        elif tensor.dtype == torch.uint8:
            tensor.fill_(_BYTE)
        else:
            tensor.fill_(torch.iinfo(tensor.dtype).min)


def is_poisoned(values: torch.Tensor) -> torch.Tensor:
    """Where the sentinel still stands, bool in ``values``' shape."""
    if values.is_floating_point():
        return values.to(torch.float32).isnan()
    return values == (_BYTE if values.dtype == torch.uint8 else torch.iinfo(values.dtype).min)
