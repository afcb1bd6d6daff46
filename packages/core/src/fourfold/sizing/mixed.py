"""The mix of BF16 and NVFP4 that fits a size with the least predicted error: an exact 0/1 knapsack.

A unit is one layer's linears of one role: a server wants a layer's experts and a layer's q, k, v alike, and a report of
``fourfold sensitivity`` has one error a unit. Units' errors add up in the prediction; that is the model, not a fact.

Exact, because sizes repeat: layers have few different shapes, and among units of equal size those with the least error
go into NVFP4 first (exchange any other choice and it gets no worse). So a choice is a count per size, and counts are
joined class by class, dropping every partial choice that another beats in both bytes and error.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from fourfold.errors import ConfigError
from fourfold.models.gemma4 import ModuleKind
from fourfold.sensitivity.report import SensitivityReport
from fourfold.sizing.shapes import ModelShape
from fourfold.sizing.sizes import unit_saving

#: Saving, error, and the count of each class so far.
_State = tuple[int, float, tuple[int, ...]]


@dataclass(frozen=True)
class Unit:
    """What is quantized together. ``saving`` in bytes, ``error`` what NVFP4 costs here; both not negative."""

    layer: int
    kind: ModuleKind
    saving: int
    error: float


@dataclass(frozen=True)
class Mix:
    """Units in NVFP4, what they save together, and their summed error."""

    quantized: tuple[Unit, ...]
    saving: int
    error: float

    def chooses(self, layer: int, kind: ModuleKind) -> bool:
        """Whether a layer's role is in NVFP4."""
        return any(unit.layer == layer and unit.kind is kind for unit in self.quantized)


def best_mix(units: Sequence[Unit], needed: int) -> Mix | None:
    """The units with the least summed error that save at least ``needed`` bytes; None where all of them do not.

    Of mixes with equal error the one that saves more. Raises :class:`ValueError` for a negative or NaN error or saving.
    """
    if any(not unit.error >= 0 or unit.saving < 0 for unit in units):
        raise ValueError("errors and savings must not be negative or NaN")
    classes: dict[int, list[Unit]] = defaultdict(list)
    for unit in units:
        classes[unit.saving].append(unit)
    ordered = [sorted(members, key=lambda unit: (unit.error, unit.layer, unit.kind)) for members in classes.values()]
    states: list[_State] = [(0, 0.0, ())]
    for members in ordered:
        errors = [0.0, *accumulate(unit.error for unit in members)]
        joined = [
            (saving + count * members[0].saving, error + errors[count], (*counts, count))
            for saving, error, counts in states
            for count in range(len(members) + 1)
        ]
        states = _undominated(joined, needed)
    fitting = [state for state in states if state[0] >= needed]
    if not fitting:
        return None
    saving, error, counts = min(fitting, key=lambda state: (state[1], -state[0]))
    chosen = [unit for members, count in zip(ordered, counts, strict=True) for unit in members[:count]]
    return Mix(tuple(sorted(chosen, key=lambda unit: (unit.layer, unit.kind))), saving, error)


def _undominated(states: Iterable[_State], needed: int) -> list[_State]:
    """Those that no other beats: more saved is of no use beyond ``needed``, but kept where errors are equal."""
    kept: list[_State] = []
    least = float("inf")
    for state in sorted(states, key=lambda state: (-min(state[0], needed), state[1], -state[0])):
        if state[1] < least:
            least = state[1]
            kept.append(state)
    return kept


def units_of(shape: ModelShape, report: SensitivityReport) -> tuple[tuple[Unit, ...], str]:
    """Every unit with its error from the report, and what the error is.

    That is the divergence of the model's answers where every group has one, else the squared change of the layer's
    output (squares of independent errors add up).

    Raises :class:`ConfigError` for a report of another model or of part of the model.
    """
    rows = {row.key: row for row in report.groups}
    wanted = {(layer.index, kind) for layer in shape.layers for kind in ModuleKind}
    missing = sorted(wanted - rows.keys())
    if missing or rows.keys() - wanted:
        layer, kind = missing[0] if missing else min(rows.keys() - wanted)
        raise ConfigError(
            f"sensitivity: layer {layer}, {kind} is in only one of the report and {shape.name}; "
            "measure the unquantized model itself with fourfold sensitivity"
        )
    divergences = all(row.kl is not None for row in rows.values())
    errors = {key: (row.kl or 0.0) if divergences else row.stream_error**2 for key, row in rows.items()}
    units = tuple(
        Unit(
            layer=layer.index,
            kind=kind,
            saving=unit_saving(layer.numel(kind), layer.copies(kind)),
            error=max(0.0, errors[layer.index, kind]),
        )
        for layer in shape.layers
        for kind in ModuleKind
    )
    return units, "KL, nats a token" if divergences else "squared change of the layer's output"
