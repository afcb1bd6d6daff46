"""Pairs of up_proj and down_proj between which factors were moved, as SmoothQuant and AWQ do it."""

from __future__ import annotations

from pathlib import Path

import torch

from .good_checkpoints import EXPERT, Editable
from .planting_files import After, manifest, rehashed
from .planting_tensors import source_weight

GATE, UP, DOWN = (f"{EXPERT}.{part}_proj" for part in ("gate", "up", "down"))


def smooth(e: Editable, source: Path, *, cancel: bool = True) -> None:
    """Factors from 0.5 to 1 on up_proj's rows; ``cancel``: and undone in down_proj's columns."""
    up, down = source_weight(source, UP).float(), source_weight(source, DOWN).float()
    factors = torch.linspace(0.5, 1.0, up.shape[0])
    e.requantize(UP, (up * factors[:, None]).to(torch.bfloat16))
    if cancel:
        e.scale_by(DOWN, "global_scale", 2.0)
        e.requantize(DOWN, (down / factors).to(torch.bfloat16))


def noise(e: Editable, _: Path) -> None:
    """Random codes, under scales that are right."""
    packed = e.part(UP, "packed_weight")
    e.put(
        UP,
        "packed_weight",
        torch.randint(256, packed.shape, generator=torch.Generator().manual_seed(2)).to(torch.uint8),
    )


def record_transformed(*modules: str) -> After:
    """Let the manifest say that modules were transformed."""
    return rehashed(manifest(lambda m: m["transformed"].update(dict.fromkeys(modules, "awq"))))
