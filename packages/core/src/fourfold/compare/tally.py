"""Sums behind the tables: statuses, percentages, squared errors, distributions, worst blocks; one weight at a time."""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, field

import torch

from fourfold.compare.blocks import MAX_STEPS
from fourfold.compare.report import Histogram, Status, TableRow, WorstBlock
from fourfold.nvfp4 import BLOCK_SIZE

#: Upper ends of the bins of differences, relative to the largest magnitude of their block of 16.
RELATIVE_BINS = (1e-6, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.2, 0.4)
NUM_WORST_BLOCKS = 12


@dataclass
class WeightSums:
    """One linear's weight, summed over its rows. ``error_*`` are squared differences from the source."""

    difference: float = 0.0
    norm: float = 0.0
    source_norm: float = 0.0
    error_a: float = 0.0
    error_b: float = 0.0
    num_codes: int = 0
    codes_differing: int = 0
    num_block_scales: int = 0
    block_scales_differing: int = 0
    all_equal: bool = True

    def add(self, other: WeightSums) -> None:
        """Add another weight's sums."""
        for name, value in vars(other).items():
            setattr(
                self,
                name,
                (getattr(self, name) and value) if name == "all_equal" else getattr(self, name) + value,
            )

    @property
    def relative_difference(self) -> float:
        """``|a - b| / |b|``; NaN where a value is NaN."""
        return _ratio(self.difference, self.norm)


def _ratio(part: float, whole: float) -> float:
    if math.isnan(part) or math.isnan(whole):
        return math.nan
    if not part:
        return 0.0
    return math.sqrt(part / whole) if whole else math.inf


@dataclass
class RowSums:
    """One row of a table while it grows."""

    statuses: dict[Status, int] = field(default_factory=lambda: dict.fromkeys(Status, 0))
    total: WeightSums = field(default_factory=WeightSums)

    def add(self, status: Status, weight: WeightSums | None) -> None:
        """Count one tensor, with its sums where it is a linear's weight."""
        self.statuses[status] += 1
        if weight is not None:
            self.total.add(weight)

    def row(self, key: str, *, with_source: bool) -> TableRow:
        """The finished row."""
        sums = self.total
        return TableRow(
            key=key,
            tensors=sum(self.statuses.values()),
            equal_bytes=self.statuses[Status.EQUAL_BYTES],
            equal_decoded=self.statuses[Status.EQUAL_DECODED],
            differing=self.statuses[Status.DIFFERING],
            codes_differing_percent=_percent(sums.codes_differing, sums.num_codes),
            block_scales_differing_percent=_percent(sums.block_scales_differing, sums.num_block_scales),
            relative_difference=_ratio(sums.difference, sums.norm) if sums.norm else None,
            relative_error_a=_ratio(sums.error_a, sums.source_norm) if with_source and sums.source_norm else None,
            relative_error_b=_ratio(sums.error_b, sums.source_norm) if with_source and sums.source_norm else None,
        )


def _percent(part: int, whole: int) -> float | None:
    return 100 * part / whole if whole else None


@dataclass
class Distributions:
    """Differences of decoded values, codes and block scales over all weights."""

    relative: list[int] = field(default_factory=lambda: [0] * (len(RELATIVE_BINS) + 2))
    code_steps: list[int] = field(default_factory=lambda: [0] * MAX_STEPS)
    block_scale_steps: list[int] = field(default_factory=lambda: [0] * MAX_STEPS)
    worst: list[tuple[float, int, WorstBlock]] = field(default_factory=list)
    _count: int = 0

    def add_decoded(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, int] | None:
        """Sort differences of decoded weights [R, K] into bins; the largest and its flat block index, if any differ."""
        size = BLOCK_SIZE if a.shape[-1] % BLOCK_SIZE == 0 else a.shape[-1]
        blocks_a, blocks_b = (w.reshape(w.shape[0], -1, size) for w in (a, b))
        difference = (blocks_a - blocks_b).abs()
        largest = torch.maximum(blocks_a.abs(), blocks_b.abs()).amax(-1, keepdim=True)
        # A block of zeros in both is equal; NaN is as far off as can be.
        relative = torch.where(difference == 0, 0.0, difference / largest).nan_to_num(torch.inf, posinf=torch.inf)
        edges = torch.tensor((0.0, *RELATIVE_BINS))
        counts = torch.bincount(torch.bucketize(relative.flatten(), edges), minlength=len(self.relative)).tolist()
        self.relative = [x + y for x, y in zip(self.relative, counts, strict=True)]
        per_block = difference.amax(-1).nan_to_num(torch.inf, posinf=torch.inf).flatten()
        index = int(per_block.argmax())
        return (per_block[index], index) if per_block[index] > 0 else None

    def add_steps(self, code_steps: list[int], block_scale_steps: list[int]) -> None:
        """Count distances on the code grid and on the E4M3 grid."""
        self.code_steps = [x + y for x, y in zip(self.code_steps, code_steps, strict=True)]
        self.block_scale_steps = [x + y for x, y in zip(self.block_scale_steps, block_scale_steps, strict=True)]

    def offer_worst(self, block: WorstBlock) -> None:
        """Keep the block if it is among the worst."""
        self._count += 1
        heapq.heappush(self.worst, (block.max_abs_difference, -self._count, block))
        if len(self.worst) > NUM_WORST_BLOCKS:
            heapq.heappop(self.worst)

    def worst_blocks(self) -> tuple[WorstBlock, ...]:
        """The worst first."""
        return tuple(block for *_, block in sorted(self.worst, key=lambda item: (-item[0], -item[1])))

    def histograms(self) -> tuple[Histogram, ...]:
        """The finished distributions."""
        steps = (*(str(n) for n in range(1, MAX_STEPS)), f"{MAX_STEPS} or more")
        bins = ("0", *(f"to {end:g}" for end in RELATIVE_BINS), f"over {RELATIVE_BINS[-1]:g}")
        return (
            Histogram(
                title="difference of decoded weights, relative to the largest magnitude of their block",
                labels=bins,
                counts=tuple(self.relative),
            ),
            Histogram(
                title="codes that differ, by steps on the E2M1 grid",
                labels=steps,
                counts=tuple(self.code_steps),
            ),
            Histogram(
                title="block scales that differ, by steps on the E4M3 grid",
                labels=steps,
                counts=tuple(self.block_scale_steps),
            ),
        )
