"""Gathers judged tensors into a report."""

from __future__ import annotations

from collections import Counter, defaultdict

from fourfold.artifact import BLOCK_SCALE, GLOBAL_SCALE, INPUT_GLOBAL_SCALE, PACKED_WEIGHT
from fourfold.compare.report import (
    CompareReport,
    Difference,
    Level,
    Part,
    PartCounts,
    Rules,
    Status,
    TableRow,
    TensorCounts,
)
from fourfold.compare.rules import Candidates, most_common
from fourfold.compare.sides import Side
from fourfold.compare.tally import Distributions, RowSums, WeightSums
from fourfold.models.gemma4 import layer_of, linear_module


class Collector:
    """Takes one judged tensor after another; :meth:`report` says what they came to."""

    def __init__(self, a: Side, b: Side, source: Side | None, level: Level, tolerance: float) -> None:
        self.distributions = Distributions()
        self._a, self._b, self._source, self._level, self._tolerance = a, b, source, level, tolerance
        self._by_layer: dict[int | None, RowSums] = defaultdict(RowSums)
        self._by_role: dict[str, RowSums] = defaultdict(RowSums)
        self._statuses: Counter[Status] = Counter()
        self._differences: list[Difference] = []
        self._rules: list[tuple[str, frozenset[str], frozenset[str], Status]] = []
        self._parts: dict[str, Counter[str]] = {
            name: Counter() for name in (PACKED_WEIGHT, BLOCK_SCALE, GLOBAL_SCALE, INPUT_GLOBAL_SCALE)
        }
        self._inexact_reciprocals = 0
        self._within = True

    def add(self, difference: Difference, sums: WeightSums | None = None) -> None:
        """One tensor; ``sums`` where it is a linear's weight."""
        self._statuses[difference.status] += 1
        self._by_layer[layer_of(difference.tensor)].add(difference.status, sums)
        self._by_role[self._role(difference)].add(difference.status, sums)
        if difference.status is not Status.EQUAL_BYTES:
            self._differences.append(difference)
            self._within &= self._is_within(difference)

    def add_parts(self, module: str, sums: WeightSums) -> None:
        """The stored parts of a weight quantized on both sides."""
        self._count(PACKED_WEIGHT, sums.num_codes, sums.codes_differing)
        self._count(BLOCK_SCALE, sums.num_block_scales, sums.block_scales_differing)
        for part, side_a, side_b in (
            (GLOBAL_SCALE, self._a.global_scales, self._b.global_scales),
            (INPUT_GLOBAL_SCALE, self._a.input_scales, self._b.input_scales),
        ):
            if module in side_a and module in side_b:
                a, b = side_a[module], side_b[module]
                self._count(part, 1, int(not a.same_as(b)))
                self._inexact_reciprocals += a.same_as(b) and a.multiplier != b.multiplier

    def add_rules(self, difference: Difference, rules: tuple[Candidates, Candidates]) -> None:
        """The computations that give a weight's bytes back."""
        self._rules.append((difference.tensor, rules[0].names, rules[1].names, difference.status))

    def report(self) -> CompareReport:
        """Everything so far."""
        counts = TensorCounts(
            total=self._statuses.total(),
            equal_bytes=self._statuses[Status.EQUAL_BYTES],
            equal_decoded=self._statuses[Status.EQUAL_DECODED],
            differing=self._statuses[Status.DIFFERING],
        )
        equal = {
            Level.BYTES: counts.equal_bytes == counts.total,
            Level.DECODED: not counts.differing,
            Level.TOLERANCE: self._within,
        }[self._level]
        rules, names = self._name_rules()
        causes = Counter(cause for difference in self._differences for cause in difference.causes)
        return CompareReport(
            a=self._a.info(),
            b=self._b.info(),
            source=self._source.folder.path.resolve().name if self._source else None,
            level=self._level,
            tolerance=self._tolerance,
            equal=equal,
            tensors=counts,
            parts={name: _part_counts(part) for name, part in self._parts.items() if part},
            causes={str(cause): count for cause, count in sorted(causes.items(), key=lambda item: (-item[1], item[0]))},
            by_layer=self._layer_rows(),
            by_role=tuple(self._row(key, self._by_role[key]) for key in sorted(self._by_role)),
            histograms=self.distributions.histograms(),
            worst_blocks=self.distributions.worst_blocks(),
            rules=rules,
            inexact_reciprocals=self._inexact_reciprocals,
            differences=tuple(
                d.model_copy(update={"rule_a": names[d.tensor][0], "rule_b": names[d.tensor][1]})
                if d.tensor in names
                else d
                for d in self._differences
            ),
        )

    def _count(self, part: str, elements: int, differing: int) -> None:
        self._parts[part].update(tensors=1, equal=int(not differing), elements=elements, differing=differing)

    def _role(self, difference: Difference) -> str:
        if difference.part is Part.OTHER:
            return "other tensors"
        module = difference.tensor.rpartition(".")[0]
        side = self._a if module in self._a.quantized or module in self._a.plain else self._b
        linear = linear_module(module, side.shape(module))
        role = f"{linear.kind} {linear.projection}" if linear else "other linears"
        return role if difference.part is Part.WEIGHT else f"{role}, input scale"

    def _is_within(self, difference: Difference) -> bool:
        if difference.status is Status.EQUAL_DECODED:
            return True
        relative = difference.relative_difference
        return difference.part is not Part.OTHER and relative is not None and relative <= self._tolerance

    def _row(self, key: str, sums: RowSums) -> TableRow:
        return sums.row(key, with_source=self._source is not None)

    def _layer_rows(self) -> tuple[TableRow, ...]:
        layers = sorted(layer for layer in self._by_layer if layer is not None)
        rows = [self._row(f"layer {layer}", self._by_layer[layer]) for layer in layers]
        if None in self._by_layer:
            rows.append(self._row("outside the layers", self._by_layer[None]))
        return tuple(rows)

    def _name_rules(self) -> tuple[Rules | None, dict[str, tuple[str | None, str | None]]]:
        if self._source is None:
            return None, {}
        rules_a = most_common((a for _, a, _, _ in self._rules), self._a.info().layout)
        rules_b = most_common((b for _, _, b, _ in self._rules), self._b.info().layout)
        differ = [status is not Status.EQUAL_BYTES for *_, status in self._rules]
        explained = sum(d and a is not None and b is not None for d, a, b in zip(differ, rules_a, rules_b, strict=True))
        rules = Rules(a=_count_rules(rules_a), b=_count_rules(rules_b), differing=sum(differ), explained=explained)
        names = {name: (a, b) for (name, *_), a, b in zip(self._rules, rules_a, rules_b, strict=True)}
        return rules, names


def _part_counts(counts: Counter[str]) -> PartCounts:
    return PartCounts(
        tensors=counts["tensors"],
        equal=counts["equal"],
        elements=counts["elements"],
        differing_elements=counts["differing"],
    )


def _count_rules(names: list[str | None]) -> dict[str, int]:
    return dict(Counter(name or "none" for name in names).most_common())
