"""What a sensitivity run carries from layer to layer, and what it has found."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fourfold.models.gemma4 import LinearModule, ModuleKind

if TYPE_CHECKING:
    import torch

#: Layer and role; None for either means all of them.
Choice = tuple[int | None, ModuleKind | None]


@dataclass
class Stream:
    """Hidden states of every batch, [B, T, H] each, with the chosen linears in NVFP4."""

    choice: Choice
    hidden: list[torch.Tensor]

    def chooses(self, module: LinearModule) -> bool:
        """Whether a linear is in NVFP4 in this stream."""
        layer, kind = self.choice
        return (layer is None or module.layer == layer) and (kind is None or module.kind is kind)


@dataclass
class Findings:
    """What has been measured so far."""

    layers: list[LayerFinding] = field(default_factory=list)
    streams: dict[Choice, Stream] = field(default_factory=dict)


@dataclass
class LayerFinding:
    """One layer's sums: its linears', and of each group the squared change of the layer's output."""

    index: int
    linears: list[LinearFinding]
    stream_error: dict[ModuleKind, float]


@dataclass(frozen=True)
class LinearFinding:
    """Squared sums of one linear; ``error_w4a4`` None without an input scale."""

    module: LinearModule
    tokens: int
    weight_norm: float
    weight_error: float
    norm: float
    error_w4a16: float
    error_w4a4: float | None
