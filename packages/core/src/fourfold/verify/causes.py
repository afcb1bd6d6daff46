"""Rules that explain a decoded weight which is not the source's: each tries one hypothesis and names it if it fits.

They run only on a misfit (:data:`fourfold.verify.fit.MAX_TENSOR_ERROR`), in the order of the registry, until one
explains it. A hypothesis fits when under it the relative error falls below the same bound.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from fourfold.models.gemma4 import ModuleKind
from fourfold.nvfp4 import BLOCK_SIZE, NVFP4Weight
from fourfold.verify.checkpoint import PARTS
from fourfold.verify.fit import MAX_TENSOR_ERROR

if TYPE_CHECKING:
    import torch

    from fourfold.models.gemma4 import LinearModule
    from fourfold.verify.module import ModuleView
    from fourfold.verify.rule import Look

#: Rows and columns that are matched to tell a permutation.
_PROBES = 32
#: Correlation of a decoded row with its source; rounding alone leaves 0.995.
_MIN_CORRELATION = 0.9
_MIN_MATCHED = 0.8
#: Correlation of a whole weight with another module's source; chance gives 0.00.
_MIN_COSINE = 0.8


@dataclass
class Misfit:
    """A module that does not decode to its source."""

    module: ModuleView

    @cached_property
    def decoded(self) -> torch.Tensor:
        """float32 [O, K]."""
        return self.module.weight.dequantize()

    @cached_property
    def source(self) -> torch.Tensor:
        """float32 [O, K]."""
        import torch

        weight = self.module.source_weight
        if weight is None:
            raise ValueError(f"{self.module.name}: no source to compare with")
        return weight.to(torch.float32)

    @cached_property
    def linear(self) -> LinearModule:
        """The module in the model."""
        linear = self.module.linear
        if linear is None:
            raise ValueError(f"{self.module.name}: no module of the model")
        return linear

    @property
    def error(self) -> float:
        """Relative RMS error."""
        return relative_error(self.decoded, self.source)

    @property
    def correlation(self) -> float:
        """Cosine between decoded weight and source."""
        return _cosine(self.decoded, self.source)

    def source_of(self, linear: LinearModule) -> torch.Tensor:
        """Another module's source weight, float32 [O, K]."""
        import torch

        source = self.module.checkpoint.source
        if source is None:
            raise ValueError(f"{self.module.name}: no source to compare with")
        return source.reader.read(source.folder.tensors[linear.tensor], linear.slices).to(torch.float32)

    def relatives(self) -> Iterator[LinearModule]:
        """Other modules of this shape: in its layer first, then the same place in other layers."""
        own = self.linear
        others = [m for m in self.module.checkpoint.linears.values() if m.shape == own.shape and m.name != own.name]
        yield from (m for m in others if m.layer == own.layer)
        yield from (
            m for m in others if m.layer != own.layer and (m.expert, m.projection) == (own.expert, own.projection)
        )


def relative_error(decoded: torch.Tensor, source: torch.Tensor) -> float:
    """Relative RMS error; infinite where the source is zero and the other is not."""
    length = float(source.norm())
    off = float((decoded - source).norm())
    return off / length if length else (0.0 if off == 0.0 else float("inf"))


def _cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    length = float(a.norm()) * float(b.norm())
    return float((a * b).sum()) / length if length else 0.0


def scale_direction_fits(look: Look, misfit: Misfit) -> None:
    """Not a reciprocal: decoding with 1 / global_scale does not give the source."""
    weight = misfit.module.weight
    scale = float(weight.global_scale)
    turned = NVFP4Weight(weight.packed_weight, weight.block_scale, weight.global_scale.reciprocal())
    if relative_error(turned.dequantize(), misfit.source) <= MAX_TENSOR_ERROR < misfit.error:
        name = misfit.module.parts[PARTS[2]].name
        look.wrong(
            name, found=f"{scale:g} in decode direction", expected=f"{1 / scale:g}",
            message=f"{name} is the reciprocal of the scale: decoded weights are off by a factor {scale * scale:.3g}",
        )  # fmt: skip


def scale_factor_fits(look: Look, misfit: Misfit) -> None:
    """The global scale is not off by a factor."""
    energy = float(misfit.decoded.square().sum())
    factor = float((misfit.decoded * misfit.source).sum()) / energy if energy else 0.0
    if relative_error(misfit.decoded * factor, misfit.source) <= MAX_TENSOR_ERROR:
        name = misfit.module.parts[PARTS[2]].name
        scale = float(misfit.module.weight.global_scale)
        look.wrong(
            name, found=f"{scale:g} in decode direction", expected=f"about {scale * factor:g}",
            message=f"{name} is off by a factor {1 / factor:.4g}: codes and block scales fit the source, "
            "the global scale does not",
        )  # fmt: skip


def nibbles_in_order(look: Look, misfit: Misfit) -> None:
    """The even column is in the low nibble."""
    weight = misfit.module.weight
    swapped = (weight.packed_weight << 4) | (weight.packed_weight >> 4)
    if relative_error(NVFP4Weight(swapped, *_scales(weight)).dequantize(), misfit.source) <= MAX_TENSOR_ERROR:
        look.wrong(
            misfit.module.parts[PARTS[0]].name, found="even columns in high nibbles", expected="in low nibbles",
            message=f"{misfit.module.name}: the two codes of every byte are swapped",
        )  # fmt: skip


def gate_up_in_place(look: Look, misfit: Misfit) -> None:
    """The module does not hold its neighbour's weight (gate for up, k for v)."""
    own = misfit.linear
    parent = own.name.rpartition(".")[0]
    for other in misfit.relatives():
        if other.name.rpartition(".")[0] == parent and _fits(misfit, other):
            look.wrong(
                misfit.module.name, found=f"the weight of {other.projection}", expected=f"that of {own.projection}",
                message=f"{misfit.module.name} holds {other.projection}: {own.projection} and {other.projection} are "
                "swapped",
            )  # fmt: skip
            return


def experts_in_order(look: Look, misfit: Misfit) -> None:
    """The module does not hold the weight of another expert, or of another layer."""
    own = misfit.linear
    for other in misfit.relatives():
        if other.kind is not own.kind or not _may_fit(misfit, other) or not _fits(misfit, other):
            continue
        place = f"expert {other.expert}" if other.layer == own.layer else f"layer {other.layer}"
        where = (
            f"expert {own.expert}"
            if own.kind is ModuleKind.EXPERT and other.layer == own.layer
            else f"layer {own.layer}"
        )
        look.wrong(
            misfit.module.name, found=f"the weight of {other.name}", expected=f"that of {where}",
            message=f"{misfit.module.name} holds the {other.projection} of {place}: experts or layers are permuted",
        )  # fmt: skip
        return


def not_transposed(look: Look, misfit: Misfit) -> None:
    """The weight is [O, K], not [K, O] written into its place."""
    source = misfit.source
    if relative_error(misfit.decoded, source.t().reshape(source.shape)) <= MAX_TENSOR_ERROR:
        look.wrong(
            misfit.module.name, found="the transposed weight", expected="[out, in]",
            message=f"{misfit.module.name} was transposed before it was quantized",
        )  # fmt: skip


def rows_in_order(look: Look, misfit: Misfit) -> None:
    """Rows are the source's in order: not shifted, and not every second one of gate and up interleaved."""
    import torch

    candidates, own = misfit.source, misfit.linear
    offset = 0
    if own.kind is ModuleKind.EXPERT and own.projection in ("gate_proj", "up_proj"):
        partner = next(
            m for m in misfit.relatives()
            if m.scale_group == own.scale_group and m.projection in ("gate_proj", "up_proj")
        )  # fmt: skip
        halves = [misfit.source, misfit.source_of(partner)]
        candidates = torch.cat(halves if own.projection == "gate_proj" else halves[::-1])
        offset = 0 if own.projection == "gate_proj" else own.shape[0]  # gate rows come first
    match = _match(misfit.decoded[:_PROBES], candidates, offset)
    if match is None:
        return
    steps = match.diff()
    first = int(match[0]) - offset
    if bool((steps == 2).all()):
        found = "gate and up rows interleaved"
    elif bool((steps == 1).sum() >= steps.numel() - 1):
        found = f"rows shifted by {first % own.shape[0]}"
    else:
        found = "rows in another order"
    look.wrong(
        misfit.module.name, found=found, expected="gate rows, then up rows, each in the source's order",
        message=f"{misfit.module.name} has the right rows in the wrong places: {found}",
    )  # fmt: skip


def columns_in_order(look: Look, misfit: Misfit) -> None:
    """Columns are the source's in order."""
    match = _match(misfit.decoded[:, :_PROBES].t(), misfit.source.t(), 0)
    if match is not None:
        steps = match.diff()
        shifted = bool((steps == 1).sum() >= steps.numel() - 1)
        found = f"columns shifted by {int(match[0])}" if shifted else "columns in another order"
        look.wrong(
            misfit.module.name, found=found, expected="columns in the source's order",
            message=f"{misfit.module.name} has the right columns in the wrong places: {found}",
        )  # fmt: skip


def block_scales_in_place(look: Look, misfit: Misfit) -> None:
    """Each block's scale belongs to its codes: with a scale of its own for each block, the codes would not fit."""
    weight = misfit.module.weight
    rows, columns = misfit.source.shape
    blocks = (rows, columns // BLOCK_SIZE, BLOCK_SIZE)
    plain = NVFP4Weight(weight.packed_weight, weight.block_scale.float().fill_(1.0).to(weight.block_scale.dtype),
                        weight.global_scale.new_ones(()))  # fmt: skip
    codes, source = plain.dequantize().view(blocks), misfit.source.view(blocks)
    best = (codes * source).sum(-1) / codes.square().sum(-1).clamp(min=1e-30)
    if relative_error(codes * best.clamp(min=0).unsqueeze(-1), source) <= MAX_TENSOR_ERROR:
        name = misfit.module.parts[PARTS[1]].name
        look.wrong(
            name, found="block scales that do not belong to these codes", expected="[O, K/16] in row order",
            message=f"{name}: the codes of {misfit.module.name} fit the source, their block scales are permuted, "
            "swizzled or wrong",
        )  # fmt: skip


def _scales(weight: NVFP4Weight) -> tuple[torch.Tensor, torch.Tensor]:
    return weight.block_scale, weight.global_scale


def _fits(misfit: Misfit, other: LinearModule) -> bool:
    source = misfit.source_of(other)
    # Two weights of a model share nothing; so alike, they are one, be it under the wrong scales.
    return relative_error(misfit.decoded, source) <= MAX_TENSOR_ERROR or _cosine(misfit.decoded, source) > _MIN_COSINE


def _may_fit(misfit: Misfit, other: LinearModule) -> bool:
    """A cheap look at one row in the middle before a whole matrix is read and compared."""
    import torch

    source = misfit.module.checkpoint.source
    if source is None:
        return False
    rows = other.slices[1].indices(source.folder.tensors[other.tensor].shape[1])[0] if len(other.slices) > 1 else 0  # type: ignore[union-attr]
    middle = other.shape[0] // 2
    part: tuple[int | slice, ...] = (*other.slices[:1], rows + middle)
    row = source.reader.read(source.folder.tensors[other.tensor], part)
    return _cosine(misfit.decoded[middle], row.to(torch.float32)) > _MIN_CORRELATION


def _match(probes: torch.Tensor, candidates: torch.Tensor, offset: int) -> torch.Tensor | None:
    """For each probe [N, K] the row of ``candidates`` [M, K] it is; None unless nearly all are one.

    None, too, when each is in its place already, ``offset`` rows on: then something else is wrong.
    """
    import torch

    unit = torch.nn.functional.normalize
    best, at = (unit(probes, dim=1) @ unit(candidates, dim=1).t()).max(dim=1)
    matched = best > _MIN_CORRELATION
    in_place = at == torch.arange(offset, offset + len(at))
    if float(matched.float().mean()) < _MIN_MATCHED or bool(in_place[matched].all()):
        return None
    return at[matched]
