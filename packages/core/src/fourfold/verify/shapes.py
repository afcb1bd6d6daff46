"""Rules about dtype and shape."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fourfold.nvfp4 import BLOCK_SIZE
from fourfold.verify.module import DTYPES

if TYPE_CHECKING:
    from fourfold.verify.checkpoint import Checkpoint
    from fourfold.verify.module import ModuleView
    from fourfold.verify.rule import Look


def part_dtypes(look: Look, module: ModuleView) -> None:
    """Packed weights are uint8, block scales float8_e4m3, global scales float32."""
    for part, entry in module.parts.items():
        look.count()
        if entry.dtype != DTYPES[part]:
            look.wrong(
                entry.name, found=entry.dtype, expected=DTYPES[part],
                message=f"{entry.name} has dtype {entry.dtype}; the {part} of NVFP4 is {DTYPES[part]}",
            )  # fmt: skip


def part_shapes(look: Look, module: ModuleView) -> None:
    """Packed [O, K/2], block scales [O, K/16], one number a global scale; O and K from the model."""
    if module.shape is not None and module.shape[1] % BLOCK_SIZE:
        look.wrong(
            module.name, found=f"K = {module.shape[1]}", expected=f"a multiple of {BLOCK_SIZE}",
            message=f"{module.name}: its {module.shape[1]} columns do not divide into blocks of {BLOCK_SIZE}",
        )  # fmt: skip
    allowed = module.expected_shapes()
    for part, entry in module.parts.items():
        look.count()
        if part in allowed and entry.shape not in allowed[part]:
            expected = " or ".join(str(list(shape)) for shape in allowed[part])
            look.wrong(
                entry.name, found=list(entry.shape), expected=expected,
                message=f"{entry.name} has shape {list(entry.shape)}; the model needs {expected}",
            )  # fmt: skip


def kept_shapes(look: Look, checkpoint: Checkpoint) -> None:
    """Unquantized tensors have the model's shape, and the source's dtype (a floating one when there is no source)."""
    if checkpoint.gemma is None:
        return
    for name, entry in checkpoint.plain.items():
        known = _model_entry(checkpoint, name)
        if known is None:
            continue
        shape, dtype = known
        look.count()
        if entry.shape != shape:
            look.wrong(
                name, found=list(entry.shape), expected=list(shape),
                message=f"{name} has shape {list(entry.shape)}; the model needs {list(shape)}",
            )  # fmt: skip
        if entry.dtype != dtype and (checkpoint.source is not None or entry.dtype not in ("BF16", "F16", "F32")):
            look.wrong(
                name, found=entry.dtype, expected=dtype,
                message=f"{name} has dtype {entry.dtype}; it should be kept as {dtype}",
            )  # fmt: skip


def _model_entry(checkpoint: Checkpoint, name: str) -> tuple[tuple[int, ...], str] | None:
    """Shape and dtype of an unquantized tensor in the model."""
    if checkpoint.gemma is None:
        return None
    linear = checkpoint.linears.get(name.removesuffix(".weight"))
    if linear is not None:
        source = checkpoint.source
        return linear.shape, source.index.entry(linear.tensor).dtype if source else "BF16"
    entry = checkpoint.model_tensors.get(name)
    return None if entry is None else (entry.shape, entry.dtype)
