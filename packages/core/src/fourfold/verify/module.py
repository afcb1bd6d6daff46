"""One quantized module with its values, and one unquantized tensor with its: what the value rules look at.

Everything costly is computed once, however many rules ask for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING

from fourfold.checkpoint.index import TensorEntry
from fourfold.nvfp4 import BLOCK_SIZE, E2M1_MAX
from fourfold.verify.checkpoint import PARTS, REQUIRED_PARTS
from fourfold.verify.shards import contiguous_part

if TYPE_CHECKING:
    import torch

    from fourfold.models.gemma4 import LinearModule
    from fourfold.nvfp4 import NVFP4Weight
    from fourfold.verify.checkpoint import Checkpoint
    from fourfold.verify.fit import Fit
    from fourfold.verify.shards import StoredTensor

#: Part -> dtype on disk.
DTYPES = dict(zip(PARTS, ("U8", "F8_E4M3", "F32", "F32"), strict=True))
#: Bytes of float8_e4m3: sign bit, and the two NaN codes without it.
SIGN_BIT, NAN_CODE = 0x80, 0x7F
#: Codes under this are subnormal (exponent bits 0); 0 is zero.
SMALLEST_NORMAL_CODE = 0x08


@dataclass
class PlainTensor:
    """A piece of a tensor outside the quantized modules: the flat elements from ``first`` on, in the stored dtype."""

    checkpoint: Checkpoint
    entry: StoredTensor
    first: int
    value: torch.Tensor

    @cached_property
    def source_value(self) -> torch.Tensor | None:
        """The same elements of the source; None without a source, or where its tensor is another or not there."""
        source = self.checkpoint.source
        if source is None:
            return None
        linear = self.checkpoint.linears.get(self.entry.name.removesuffix(".weight"))
        name, slices = (linear.tensor, linear.slices) if linear is not None else (self.entry.name, ())
        stored = source.folder.tensors.get(name)
        if stored is None or stored.dtype != self.entry.dtype:
            return None
        begin, shape = contiguous_part(stored.shape, slices)
        if shape != self.entry.shape:
            return None
        return source.reader.read_span(stored, begin + self.first, self.value.numel())


@dataclass
class ModuleView:
    """A quantized module. ``values`` holds the parts that are there, as stored."""

    checkpoint: Checkpoint
    name: str
    parts: dict[str, StoredTensor]
    values: dict[str, torch.Tensor]

    @cached_property
    def linear(self) -> LinearModule | None:
        """The module in the model; None when it has no such linear, or none is known."""
        return self.checkpoint.linears.get(self.name)

    @cached_property
    def shape(self) -> tuple[int, int] | None:
        """[O, K] as the model says, else as the packed weight has it; None when neither does."""
        if self.linear is not None:
            return self.linear.shape
        packed = self.parts.get(PARTS[0])
        return (packed.shape[0], 2 * packed.shape[1]) if packed is not None and len(packed.shape) == 2 else None

    def expected_shapes(self) -> dict[str, tuple[tuple[int, ...], ...]]:
        """Allowed shapes of each part."""
        if self.shape is None:
            return {}
        rows, columns = self.shape
        scalar: tuple[tuple[int, ...], ...] = ((), (1,))
        return {
            PARTS[0]: ((rows, columns // 2),), PARTS[1]: ((rows, columns // BLOCK_SIZE),),
            PARTS[2]: scalar, PARTS[3]: scalar,
        }  # fmt: skip

    @cached_property
    def well_formed(self) -> bool:
        """Whether all required parts are there with the right dtype and shape, so that values mean something."""
        shapes = self.expected_shapes()
        return bool(shapes) and all(
            part in self.parts and self.parts[part].dtype == DTYPES[part] and self.parts[part].shape in shapes[part]
            for part in REQUIRED_PARTS
        )

    def scalar(self, part: str) -> float | None:
        """A global scale in decode direction; None when absent, NaN when it is not one float32."""
        entry: TensorEntry | None = self.parts.get(part)
        if entry is None:
            return None
        if entry.dtype != "F32" or entry.numel != 1 or self.checkpoint.layout is None:
            return float("nan")
        return float(self.checkpoint.layout.from_stored(self.values[part]))

    @cached_property
    def scale_histogram(self) -> torch.Tensor | None:
        """int64 [256]: how often each byte stands in the block scales; None unless they are float8 with elements."""
        entry = self.parts.get(PARTS[1])
        return (
            _histogram(self.values[PARTS[1]])
            if entry is not None and entry.dtype == "F8_E4M3" and entry.numel
            else None
        )

    @cached_property
    def code_histogram(self) -> torch.Tensor | None:
        """int64 [256]: how often each byte (two codes) stands in the packed weight; None unless it is uint8."""
        entry = self.parts.get(PARTS[0])
        return _histogram(self.values[PARTS[0]]) if entry is not None and entry.dtype == "U8" and entry.numel else None

    @cached_property
    def weight(self) -> NVFP4Weight:
        """The weight, all scales in decode direction. Only where :attr:`well_formed`."""
        from fourfold.nvfp4 import NVFP4Weight

        layout = self.checkpoint.layout
        if layout is None or not self.well_formed:
            raise ValueError(f"{self.name}: parts do not belong together; ask well_formed first")
        return NVFP4Weight(self.values[PARTS[0]], self.values[PARTS[1]], layout.from_stored(self.values[PARTS[2]]))

    @cached_property
    def row_norm(self) -> float | None:
        """The largest norm a row of the decoded weight can have; None unless :attr:`well_formed` and finite.

        A block of 16 values of at most 6 steps has a norm of at most 24 steps.
        """
        import torch

        if not self.well_formed or not self.decodes_finite:
            return None
        # By a table of byte values: converting float8 takes longer than everything else that is asked of scales.
        codes = self.values[PARTS[1]].view(torch.uint8)
        squares = torch.index_select(_float8_squares(), 0, codes.flatten().to(torch.int32)).view(codes.shape)
        largest = squares.sum(-1).max().sqrt() * self.weight.global_scale
        return float(math.sqrt(BLOCK_SIZE) * E2M1_MAX * largest)

    @cached_property
    def source_weight(self) -> torch.Tensor | None:
        """What the weight [O, K] must be near to: the source's in its dtype, under a transformed one's own factors.

        None without a source or for an unknown module.
        """
        own = self._of_source
        return own if own is None or self.factors is None else own * self.factors

    @cached_property
    def _of_source(self) -> torch.Tensor | None:
        source = self.checkpoint.source
        if source is None or self.linear is None:
            return None
        return source.reader.read(source.folder.tensors[self.linear.tensor], self.linear.slices)

    @cached_property
    def factors(self) -> torch.Tensor | None:
        """A transformed weight's factors, float32 [O, 1] or [1, K] (:mod:`fourfold.verify.transformed`); else None."""
        from fourfold.verify.transformed import DOWN, find_factors

        own = self._of_source
        if not self.is_transformed or own is None or not self.well_formed or not self.decodes_finite:
            return None
        return find_factors(self.weight, own, of_rows=not self.name.endswith(DOWN))

    def source_is_that_of(self, name: str) -> bool:
        """Whether the source gives this module and another one the same weight; False without a source."""
        import torch

        source, other = self.checkpoint.source, self.checkpoint.linears.get(name)
        own = self._of_source
        if source is None or other is None or own is None:
            return False
        return torch.equal(own, source.reader.read(source.folder.tensors[other.tensor], other.slices))

    @cached_property
    def fit(self) -> Fit | None:
        """How the decoded weight compares to the source's; None where there is nothing sound to compare."""
        from fourfold.verify.fit import compare

        if not self.well_formed or not self.decodes_finite:
            return None
        weight = self.source_weight
        return None if weight is None else compare(self.weight, weight)

    @property
    def is_transformed(self) -> bool:
        """Whether the manifest says that the weight was changed on purpose before rounding (AWQ and kin)."""
        manifest = self.checkpoint.manifest
        return manifest is not None and self.name in manifest.transformed

    @cached_property
    def decodes_finite(self) -> bool:
        """Whether every decoded value is a finite number, without decoding: no NaN block scale, a usable global one."""
        histogram, scale = self.scale_histogram, self.scalar(PARTS[2])
        if histogram is None or scale is None or not math.isfinite(scale):
            return False
        return int(histogram[NAN_CODE]) + int(histogram[NAN_CODE | SIGN_BIT]) == 0


@cache
def _float8_squares() -> torch.Tensor:
    """float32 [256]: the square of each byte's float8_e4m3 value."""
    import torch

    return torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).to(torch.float32).square()


def _histogram(values: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.bincount(values.view(torch.uint8).flatten(), minlength=256)
