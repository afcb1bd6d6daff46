"""What other loaders do with a checkpoint that is right: warnings, not findings."""

from __future__ import annotations

import re

from fourfold.checkpoint.layouts import COMPRESSED_TENSORS
from fourfold.verify.checkpoint import Checkpoint

_EXPERT = re.compile(r"\.experts\.\d+\.(gate|up|down)_proj$")

TRANSFORMERS_LOSES_EXPERTS = (
    "transformers (5.17 was tried) does not read the un-fused NVFP4 experts of this layout: from_pretrained gives "
    "every expert new random weights and only lists them as missing; use this checkpoint with a server that maps them"
)


def loader_warnings(checkpoint: Checkpoint) -> tuple[str, ...]:
    """One line for each loader known to read this checkpoint wrongly."""
    has_experts = any(_EXPERT.search(name) for name in checkpoint.modules)
    return (TRANSFORMERS_LOSES_EXPERTS,) if checkpoint.layout is COMPRESSED_TENSORS and has_experts else ()
