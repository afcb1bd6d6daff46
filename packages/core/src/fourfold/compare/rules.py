"""Giving a side's bytes back from the source: the explanation that leaves nothing open.

For every quantized module the codec is asked which policy, with the amax of the module or of its scale group,
gives the stored global scale; those that do are followed through block scales and codes. A module that a rule
gives back to the byte is explained by the rule's name.

The policies ``fourfold`` and ``modelopt`` differ only where a block scale would exceed 448, which no amax of the
module's own or its group's can cause: their bytes are computed once and count for both names.

Shape letters: R rows, K in features.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch

from fourfold.compare.sides import Scale, Side
from fourfold.nvfp4 import (
    BlockScalePolicy,
    NVFP4Weight,
    encode_scale_from_amax,
    global_scale_from_amax,
    quantize,
)

#: The rule of a weight whose scales were searched: no policy gives them, but every code is nearest to the source.
NEAREST = "searched scales, nearest codes"
_ARITHMETIC = (
    (BlockScalePolicy.MODELOPT, (BlockScalePolicy.FOURFOLD, BlockScalePolicy.MODELOPT)),
    (BlockScalePolicy.COMPRESSED_TENSORS, (BlockScalePolicy.COMPRESSED_TENSORS,)),
)


@dataclass(frozen=True)
class Rule:
    """A computation: one policy's arithmetic on one amax. ``names`` are all that it goes by."""

    policy: BlockScalePolicy
    amax: float
    names: frozenset[str]


@dataclass
class Candidates:
    """Rules that still fit a side's module; rows strike them out."""

    rules: list[Rule]
    nearest: bool = True

    @property
    def names(self) -> frozenset[str]:
        """What fits."""
        if self.rules:
            return frozenset().union(*(rule.names for rule in self.rules))
        return frozenset({NEAREST}) if self.nearest else frozenset()


def check_rows(source: torch.Tensor, sides: Sequence[tuple[Candidates, NVFP4Weight]]) -> None:
    """Strike from each side what does not give its stored rows back from ``source`` [R, K]."""
    expected: dict[tuple[BlockScalePolicy, float], NVFP4Weight] = {}
    for candidates, stored in sides:
        for rule in list(candidates.rules):
            key = (rule.policy, rule.amax)
            if key not in expected:
                amax = torch.tensor(rule.amax, dtype=source.dtype)
                expected[key] = quantize(source, global_amax=amax, policy=rule.policy)
            if not _same_bytes(expected[key], stored):
                candidates.rules.remove(rule)
        if not candidates.rules and candidates.nearest:
            candidates.nearest = _is_nearest(source, stored)


def _same_bytes(a: NVFP4Weight, b: NVFP4Weight) -> bool:
    return torch.equal(a.packed_weight, b.packed_weight) and torch.equal(
        a.block_scale.view(torch.uint8), b.block_scale.view(torch.uint8)
    )


def _is_nearest(source: torch.Tensor, stored: NVFP4Weight) -> bool:
    try:
        again = quantize(source, global_scale=stored.global_scale, block_scale=stored.block_scale)
    except ValueError:
        return False
    return torch.equal(again.packed_weight, stored.packed_weight)


@dataclass
class SourceRules:
    """The rules of one source model; every amax is read once."""

    source: Side
    # Numbers, not tensors: thousands of small tensors would pin the heap that rows pass through.
    _amax: dict[str, float] = field(default_factory=dict)
    _groups: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, linear in self.source.plain.items():
            self._groups.setdefault(linear.scale_group, []).append(name)

    def candidates(self, module: str, a: Side, b: Side) -> tuple[Candidates, Candidates] | None:
        """Rules whose global scale is the stored one, for each side; None for a module the source lacks."""
        linear = self.source.plain.get(module)
        if linear is None or linear.shape != a.shape(module):
            return None
        own = self._read_amax(module)
        shared = max(self._read_amax(m) for m in self._groups[linear.scale_group])
        dtype = self.source.plain_rows(module, slice(0, 1)).dtype
        whose = {shared: ["amax of the scale group"]}
        whose.setdefault(own, []).append("own amax")
        return _fitting(whose, dtype, a.global_scales[module]), _fitting(whose, dtype, b.global_scales[module])

    def _read_amax(self, module: str) -> float:
        if module not in self._amax:
            parts = [self.source.plain_rows(module, rows).abs().amax() for rows in self.source.row_chunks(module)]
            self._amax[module] = torch.stack(parts).amax().item()
        return self._amax[module]


def _fitting(whose: dict[float, list[str]], dtype: torch.dtype, scale: Scale) -> Candidates:
    rules = []
    for amax, owners in whose.items():
        for policy, policies in _ARITHMETIC:
            if _gives(policy, torch.tensor(amax, dtype=dtype), scale):
                names = frozenset(f"{name}, {owner}" for name in policies for owner in owners)
                rules.append(Rule(policy, amax, names))
    return Candidates(rules)


def _gives(policy: BlockScalePolicy, amax: torch.Tensor, scale: Scale) -> bool:
    try:
        if policy is BlockScalePolicy.COMPRESSED_TENSORS:
            return scale.holds_divisor(encode_scale_from_amax(amax))
        return scale.holds_multiplier(global_scale_from_amax(amax, policy))
    except ValueError:
        return False


def most_common(found: Iterable[frozenset[str]], prefer: str) -> list[str | None]:
    """One rule for each module: of those that fit it, the one that fits the most modules.

    Among equals, the policy named ``prefer`` (a layout's own): two policies often give the same bytes.
    """
    listed = list(found)
    popularity = Counter(name for names in listed for name in names)
    return [
        min(names, key=lambda n: (-popularity[n], not n.startswith(prefer), n)) if names else None for names in listed
    ]
