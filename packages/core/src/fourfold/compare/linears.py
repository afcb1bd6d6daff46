"""One linear of both sides, some rows at a time: sums, distributions, causes."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field, replace

import torch

from fourfold.compare.blocks import compare_rows
from fourfold.compare.report import Cause, WorstBlock
from fourfold.compare.rules import Candidates, check_rows
from fourfold.compare.sides import Side
from fourfold.compare.tally import Distributions, WeightSums
from fourfold.nvfp4 import BLOCK_SIZE


@dataclass
class LinearResult:
    """What one linear showed. ``same_bytes`` and ``same_dtype`` speak of a weight unquantized on both sides."""

    sums: WeightSums = field(default_factory=WeightSums)
    causes: Counter[Cause] = field(default_factory=Counter)
    same_bytes: bool = True
    same_dtype: bool = True


class LinearComparison:
    """Compares linear after linear, adding to one set of distributions."""

    def __init__(self, a: Side, b: Side, source: Side | None, distributions: Distributions) -> None:
        self._a, self._b, self._source = a, b, source
        self._distributions = distributions

    def compare(self, module: str, rules: tuple[Candidates, Candidates] | None) -> LinearResult:
        """Compare one linear that has the same shape on both sides; strikes rules that do not fit."""
        both = module in self._a.quantized and module in self._b.quantized
        result = LinearResult()
        worst: WorstBlock | None = None
        for rows in self._a.row_chunks(module):
            if both:
                a, b = self._compare_quantized(module, rows, result, rules)
            else:
                a, b = self._compare_plain(module, rows, result)
            found = self._add_values(module, rows, a, b, result.sums)
            if found and (worst is None or found.max_abs_difference > worst.max_abs_difference):
                worst = found
        if worst:
            self._distributions.offer_worst(worst)
        return result

    def _compare_quantized(
        self, module: str, rows: slice, result: LinearResult, rules: tuple[Candidates, Candidates] | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        a, b = self._a.nvfp4_rows(module, rows), self._b.nvfp4_rows(module, rows)
        if rules:
            assert self._source is not None  # rules come from a source
            weight = self._source.plain_rows(module, rows)
            check_rows(weight, ((rules[0], a), (rules[1], b)))
        if self._a.global_scales[module].same_as(self._b.global_scales[module]):
            b = replace(b, global_scale=a.global_scale)
        found = compare_rows(a, b)
        result.causes.update(found.causes)
        sums = result.sums
        sums.num_codes += a.shape.numel()
        sums.num_block_scales += a.block_scale.numel()
        sums.codes_differing += found.codes_differing
        sums.block_scales_differing += found.block_scales_differing
        self._distributions.add_steps(found.code_steps, found.block_scale_steps)
        return a.dequantize(), b.dequantize()

    def _compare_plain(self, module: str, rows: slice, result: LinearResult) -> tuple[torch.Tensor, torch.Tensor]:
        if module in self._a.quantized or module in self._b.quantized:
            result.same_bytes = result.same_dtype = False
        else:
            a, b = self._a.plain_rows(module, rows), self._b.plain_rows(module, rows)
            result.same_dtype = a.dtype == b.dtype
            result.same_bytes &= same_bytes(a, b)
        return self._a.decoded_rows(module, rows), self._b.decoded_rows(module, rows)

    def _add_values(
        self, module: str, rows: slice, a: torch.Tensor, b: torch.Tensor, sums: WeightSums
    ) -> WorstBlock | None:
        sums.all_equal &= torch.equal(a, b)
        sums.difference += _square_sum(a - b)
        sums.norm += _square_sum(b)
        if self._source is not None and module in self._source.plain:
            source = self._source.decoded_rows(module, rows)
            sums.source_norm += _square_sum(source)
            sums.error_a += _square_sum(a - source)
            sums.error_b += _square_sum(b - source)
        found = self._distributions.add_decoded(a, b)
        if found is None:
            return None
        largest, index = found
        size = BLOCK_SIZE if a.shape[-1] % BLOCK_SIZE == 0 else a.shape[-1]
        row, block = divmod(index, a.shape[-1] // size)
        part = slice(block * size, block * size + min(size, BLOCK_SIZE))
        value = largest.item()
        return WorstBlock(
            tensor=f"{module}.weight",
            row=rows.start + row,
            block=block,
            max_abs_difference=value if math.isfinite(value) else math.inf,
            a=tuple(a[row, part].tolist()),
            b=tuple(b[row, part].tolist()),
        )


def same_bytes(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors of one shape hold the same bytes in the same type."""
    if a.dtype != b.dtype:
        return False
    return torch.equal(a.contiguous().reshape(-1).view(torch.uint8), b.contiguous().reshape(-1).view(torch.uint8))


def _square_sum(values: torch.Tensor) -> float:
    return float(values.double().square().sum())
