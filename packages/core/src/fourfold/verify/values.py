"""Rules about values against the source: what was kept is kept to the bit, what was quantized decodes to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fourfold.verify.feedback import damaged_blocks, is_feedback
from fourfold.verify.fit import MAX_BLOCK_ERROR, MAX_TENSOR_ERROR

if TYPE_CHECKING:
    from fourfold.verify.causes import Misfit
    from fourfold.verify.module import ModuleView, PlainTensor
    from fourfold.verify.rule import Look

_CLIP_BOUNDS = (".input_min", ".input_max", ".output_min", ".output_max")


def kept_identical(look: Look, tensor: PlainTensor) -> None:
    """A tensor that is not quantized equals the source's, bit for bit."""
    import torch

    if (source := tensor.source_value) is None:
        return
    look.count(tensor.value.numel())
    name, value = tensor.entry.name, tensor.value
    if torch.equal(value.view(torch.uint8), source.view(torch.uint8)):
        return
    width = value.element_size()
    differs = (value.view(torch.uint8) != source.view(torch.uint8)).view(-1, width).any(-1)
    at = int(differs.to(torch.uint8).argmax())
    look.wrong(
        name, found=f"{value[at].item()!r} at element {tensor.first + at}", expected=repr(source[at].item()),
        message=f"{name} is kept but not the source's: {int(differs.sum())} elements differ",
    )  # fmt: skip


def kept_finite(look: Look, tensor: PlainTensor) -> None:
    """No kept tensor holds NaN or infinity (the bounds of clipped linears may)."""
    import torch

    bits = {"BF16": (torch.int16, 0x7F80), "F16": (torch.int16, 0x7C00), "F32": (torch.int32, 0x7F800000)}
    if tensor.entry.dtype not in bits or tensor.entry.name.endswith(_CLIP_BOUNDS):
        return
    look.count(tensor.value.numel())
    # NaN and infinity are the numbers whose exponent bits are all set; much faster to see than by isfinite().
    dtype, exponent = bits[tensor.entry.dtype]
    if int((tensor.value.view(dtype) & torch.iinfo(dtype).max).max()) >= exponent:
        look.wrong(
            tensor.entry.name, found="NaN or infinity", expected="finite numbers",
            message=f"{tensor.entry.name} holds NaN or infinity; so will every output",
        )  # fmt: skip


def layer_scalar_not_zero(look: Look, tensor: PlainTensor) -> None:
    """``layer_scalar`` is not zero."""
    if not tensor.entry.name.endswith(".layer_scalar"):
        return
    look.count()
    if not bool(tensor.value.any()):
        look.wrong(
            tensor.entry.name, found=0, expected="the source's value",
            message=f"{tensor.entry.name} is 0, so the layer's whole output is; it was saved without its value",
        )  # fmt: skip


def decodes_to_source(look: Look, misfit: Misfit) -> None:
    """The decoded weight is within NVFP4's error of the source's (for a misfit that no other rule explains)."""
    module = misfit.module
    look.wrong(
        module.name, found=f"relative error {misfit.error:.3g}", expected=f"at most {MAX_TENSOR_ERROR}",
        message=f"{module.name} does not decode to the source's weight (correlation {misfit.correlation:.3f}); "
        "no known exchange of tensors, rows, columns, nibbles or scales explains it",
    )  # fmt: skip


def not_overfitted(look: Look, misfit: Misfit) -> None:
    """Error feedback did not carry the weight further from its source than any rounding to nearest could."""
    module = misfit.module
    weight = module.source_weight
    if weight is None or not is_feedback(module.weight, weight):
        return
    look.wrong(
        module.name, found=f"relative error {misfit.error:.3g}", expected=f"at most {MAX_TENSOR_ERROR}",
        message=f"{module.name}: error feedback (GPTQ) moved it further from the source than any rounding; whether its "
        "inputs forgive that no file can tell: compare scores, or use more damping, more tokens or another algorithm",
    )  # fmt: skip


def blocks_within_bound(look: Look, module: ModuleView) -> None:
    """Where a tensor as a whole fits, no single block is off by more than rounding can cause."""
    fit = module.fit
    if fit is None or fit.error > MAX_TENSOR_ERROR:
        return
    look.count(fit.num_blocks)
    weight = module.source_weight
    if not fit.num_bad_blocks or weight is None:
        return
    damaged = damaged_blocks(module.weight, weight)
    if not (number := int((damaged > 0).sum())):
        return
    row, block = divmod(int(damaged.argmax()), damaged.shape[1])
    look.wrong(
        module.name, found=f"block {block} of row {row} is off by {100 * float(damaged[row, block]):.0f} %",
        expected=f"at most {100 * MAX_BLOCK_ERROR:.0f} %",
        message=f"{module.name}: {number} of {fit.num_blocks} blocks do not decode to the source; "
        "block scales or codes were damaged",
    )  # fmt: skip
