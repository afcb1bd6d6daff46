"""Giving a side's bytes back from the source: the explanation that leaves nothing open.

For every quantized module the codec is asked which policy, with the amax of the module or of its scale group,
gives the stored global scale; those that do are followed through block scales and codes. A module that a rule gives
back to the byte is explained by the rule's name.

Shape letters: R rows, K in features.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
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

#: The rule of a weight whose scales come from a search: no policy gives them, but the codes are nearest to the source.
NEAREST = "searched scales, nearest codes"


@dataclass
class Candidates:
    """Rules that still fit a side's module; rows strike them out."""

    policies: dict[str, tuple[BlockScalePolicy, torch.Tensor]]
    nearest: bool = True

    def check(self, source: torch.Tensor, stored: NVFP4Weight) -> None:
        """Drop what does not give ``stored`` back from ``source`` [R, K]."""
        for name, (policy, amax) in list(self.policies.items()):
            try:
                expected = quantize(source, global_amax=amax, policy=policy)
            except ValueError:
                del self.policies[name]
                continue
            if not _same_bytes(expected, stored):
                del self.policies[name]
        if not self.policies and self.nearest:
            self.nearest = _is_nearest(source, stored)

    @property
    def names(self) -> frozenset[str]:
        """What fits."""
        return frozenset(self.policies) or (frozenset({NEAREST}) if self.nearest else frozenset())


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
    """The rules of one source model; amax are read once a scale group."""

    source: Side
    _amax: dict[str, torch.Tensor] = field(default_factory=dict)
    _groups: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, linear in self.source.plain.items():
            self._groups.setdefault(linear.scale_group, []).append(name)

    def candidates(self, module: str, a: Side, b: Side) -> tuple[Candidates, Candidates] | None:
        """Rules whose global scale is the stored one, for each side; None for a module the source lacks."""
        linear = self.source.plain.get(module)
        if linear is None or linear.shape != a.shape(module):
            return None
        own = self.amax(module)
        shared = torch.stack([self.amax(m) for m in self._groups[linear.scale_group]]).amax()
        return tuple(_fitting(own, shared, side.global_scales[module]) for side in (a, b))  # type: ignore[return-value]

    def amax(self, module: str) -> torch.Tensor:
        """Largest absolute value of a module's source weight, in its dtype."""
        if module not in self._amax:
            rows = self.source.plain_rows(module, slice(0, self.source.shape(module)[0]))
            self._amax[module] = rows.abs().amax()
        return self._amax[module]


def _fitting(own: torch.Tensor, shared: torch.Tensor, scale: Scale) -> Candidates:
    fits: dict[str, tuple[BlockScalePolicy, torch.Tensor]] = {}
    for whose, amax in (("amax of the scale group", shared), ("own amax", own)):
        for policy in BlockScalePolicy:
            if _gives(policy, amax, scale):
                fits[f"{policy}, {whose}"] = (policy, amax)
    return Candidates(fits)


def _gives(policy: BlockScalePolicy, amax: torch.Tensor, scale: Scale) -> bool:
    try:
        if policy is BlockScalePolicy.COMPRESSED_TENSORS:
            divisor = encode_scale_from_amax(amax)
            return scale.divisor == divisor.item() or scale.multiplier == divisor.reciprocal().item()
        multiplier = global_scale_from_amax(amax, policy)
        return scale.multiplier == multiplier.item() or scale.divisor == multiplier.reciprocal().item()
    except ValueError:
        return False


def most_common(found: Iterable[frozenset[str]], prefer: str) -> list[str | None]:
    """One rule for each module: of those that fit it, the one that fits the most modules.

    Among equals, the policy named ``prefer`` (a layout's own): two policies often give the same bytes.
    """
    listed = list(found)
    popularity = Counter(name for names in listed for name in names)
    return [
        min(names, key=lambda n: (-popularity[n], not n.startswith(prefer), n)) if names else None
        for names in listed
    ]
