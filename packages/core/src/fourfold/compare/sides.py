"""One side of a comparison: a folder of any layout, or an unquantized model, under canonical names.

A linear is known by its name in the un-fused model wherever it stands: quantized, as a 2-D weight, or inside a fused
expert tensor. Everything is read by rows, so that the largest tensor costs no more memory than a small one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from fourfold.artifact import BLOCK_SCALE, ENCODE_SCALES, GLOBAL_SCALE, INPUT_GLOBAL_SCALE, PACKED_WEIGHT
from fourfold.checkpoint.canonical import CanonicalFolder
from fourfold.checkpoint.index import TensorEntry, TensorFolder
from fourfold.checkpoint.layouts import CANONICAL, LAYOUTS
from fourfold.compare.report import SideInfo
from fourfold.manifest import MANIFEST_FILE, Manifest
from fourfold.models.gemma4 import LinearModule, fused_linears, linear_module

if TYPE_CHECKING:
    import torch

    from fourfold.nvfp4 import NVFP4Weight


#: Values read at once; temporaries stay below some 128 bytes for each.
CHUNK_VALUES = 2**19


class Direction(Enum):
    """How a scale is stored: it multiplies or divides on decode."""

    MULTIPLIER = "multiplier"
    DIVISOR = "divisor"


@dataclass(frozen=True)
class Scale:
    """A scale in both directions, float32 values; ``stored`` says which of them the folder itself holds.

    A layout holds one, an artifact both: the divisor it does not spell out is the reciprocal.
    """

    multiplier: float
    divisor: float
    stored: frozenset[Direction]

    def same_as(self, other: Scale) -> bool:
        """Whether both are stored alike: equal in every direction both hold; in either, where they share none."""
        pairs = {
            Direction.MULTIPLIER: self.multiplier == other.multiplier,
            Direction.DIVISOR: self.divisor == other.divisor,
        }
        common = self.stored & other.stored
        return all(pairs[d] for d in common) if common else self.agrees_with(other)

    def agrees_with(self, other: Scale) -> bool:
        """Whether one is the other, or the float32 reciprocal of the other's reciprocal."""
        return self.multiplier == other.multiplier or self.divisor == other.divisor

    def holds_multiplier(self, multiplier: torch.Tensor) -> bool:
        """Whether a producer's float32 ``multiplier`` [] leaves these bytes, in the direction stored here."""
        if Direction.MULTIPLIER in self.stored:
            return self.multiplier == multiplier.item()
        return self.divisor == multiplier.reciprocal().item()

    def holds_divisor(self, divisor: torch.Tensor) -> bool:
        """The same of a producer's float32 ``divisor`` []."""
        if Direction.DIVISOR in self.stored:
            return self.divisor == divisor.item()
        return self.multiplier == divisor.reciprocal().item()


class Side:
    """A folder to compare.

    ``quantized`` are the modules in NVFP4, ``plain`` the unquantized linears, ``others`` every other tensor; keys
    are module names for the first two, tensor names for the third.
    """

    def __init__(self, path: Path) -> None:
        plain = TensorFolder(path)
        self._num_tensors = len(plain.tensors)
        suffixes = tuple(f".{layout.global_scale}" for layout in LAYOUTS.values())
        is_quantized = any(name.endswith(suffixes) for name in plain.tensors)
        self.folder = CanonicalFolder(path) if is_quantized else plain
        self.quantized: dict[str, tuple[int, int]] = {}
        self.plain: dict[str, LinearModule] = {}
        self.others: set[str] = set()
        if isinstance(self.folder, CanonicalFolder):
            for module in self.folder.modules:
                rows, width = self.folder.entry(f"{module}.{PACKED_WEIGHT}").shape
                self.quantized[module] = (rows, 2 * width)
        for entry in self.folder:
            if isinstance(self.folder, CanonicalFolder) and self.folder.is_part(entry.name):
                continue
            linears = _linears(entry)
            self.plain.update({linear.name: linear for linear in linears})
            if not linears:
                self.others.add(entry.name)
        self.global_scales = self._read_scales(GLOBAL_SCALE)
        self.input_scales = self._read_scales(INPUT_GLOBAL_SCALE)
        self.fallbacks = self._read_fallbacks(path)

    def info(self) -> SideInfo:
        """What the report says about this side."""
        layout = self.folder.layout.name if isinstance(self.folder, CanonicalFolder) else "unquantized"
        return SideInfo(
            name=self.folder.path.resolve().name,
            layout=layout,
            num_tensors=self._num_tensors,
            num_quantized_modules=len(self.quantized),
        )

    def shape(self, module: str) -> tuple[int, int]:
        """Shape [O, K] of a linear's weight."""
        return self.quantized.get(module) or self.plain[module].shape

    def row_chunks(self, module: str) -> Iterator[slice]:
        """Rows of a linear's weight, some ``CHUNK_VALUES`` values at a time."""
        num_rows, width = self.shape(module)
        step = max(1, CHUNK_VALUES // width)
        for start in range(0, num_rows, step):
            yield slice(start, min(num_rows, start + step))

    def nvfp4_rows(self, module: str, rows: slice) -> NVFP4Weight:
        """Some rows of a quantized weight."""
        from fourfold.nvfp4 import NVFP4Weight

        return NVFP4Weight(
            self.folder.read(f"{module}.{PACKED_WEIGHT}", (rows,)),
            self.folder.read(f"{module}.{BLOCK_SCALE}", (rows,)),
            self.folder.read(f"{module}.{GLOBAL_SCALE}"),
        )

    def plain_rows(self, module: str, rows: slice) -> torch.Tensor:
        """Some rows of an unquantized linear's weight, in its stored dtype."""
        linear = self.plain[module]
        if not linear.slices:
            return self.folder.read(linear.tensor, (rows,))
        expert, *part = linear.slices
        start = part[0].start if part and isinstance(part[0], slice) else 0
        return self.folder.read(linear.tensor, (expert, slice(start + rows.start, start + rows.stop)))

    def decoded_rows(self, module: str, rows: slice) -> torch.Tensor:
        """Some rows of a linear's weight as float32, decoded where it is quantized."""
        if module in self.quantized:
            return self.nvfp4_rows(module, rows).dequantize()
        return self.plain_rows(module, rows).float()

    def _read_scales(self, kind: str) -> dict[str, Scale]:
        import torch

        scales: dict[str, Scale] = {}
        stored = self._directions()
        for module in self.quantized:
            if f"{module}.{kind}" not in self.folder:
                continue
            multiplier = self.folder.read(f"{module}.{kind}").to(torch.float32)
            exact = f"{module}.{ENCODE_SCALES[kind]}"
            divisor = self.folder.read(exact) if exact in self.folder else multiplier.reciprocal()
            scales[module] = Scale(multiplier.item(), divisor.item(), stored)
        return scales

    def _directions(self) -> frozenset[Direction]:
        if not isinstance(self.folder, CanonicalFolder) or self.folder.layout is CANONICAL:
            return frozenset(Direction)
        return frozenset({Direction.DIVISOR if self.folder.layout.reciprocal else Direction.MULTIPLIER})

    def _read_fallbacks(self, path: Path) -> Mapping[str, str]:
        if not (path / MANIFEST_FILE).is_file():
            return {}
        return {f.module: f"{f.rule}: {f.detail}" for f in Manifest.read(path).fallbacks}


def _linears(entry: TensorEntry) -> tuple[LinearModule, ...]:
    """The linears of the un-fused model that an unquantized tensor holds; empty for a tensor of another kind."""
    linear = linear_module(entry.name.removesuffix(".weight"), entry.shape)
    if linear is not None and entry.name == linear.tensor:
        return (linear,)
    return fused_linears(entry.name, entry.shape)
