"""Layouts: the names and directions under which a checkpoint stores NVFP4 on disk.

=====================  ==========  =====================  ======================
canonical              artifact    ``modelopt``           ``compressed-tensors``
=====================  ==========  =====================  ======================
packed_weight          same        ``weight``             ``weight_packed``
block_scale            same        ``weight_scale``       ``weight_scale``
global_scale           same        ``weight_scale_2``     ``weight_global_scale``, reciprocal, [1]
input_global_scale     same        ``input_scale``        ``input_global_scale``, reciprocal, [1]
K scale of a layer     same        ``k_proj.k_scale``     ``k_scale``
=====================  ==========  =====================  ======================

A reciprocal exists here and nowhere else: whatever reads through a layout gets scales that multiply on decode.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fourfold.checkpoint.index import TensorEntry, TensorFolder
from fourfold.errors import CheckpointError, UnknownNameError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Key suffixes of one layout and the direction and shape of its global scales."""

    name: str
    packed_weight: str
    block_scale: str
    global_scale: str
    input_global_scale: str
    reciprocal: bool
    scalar_shape: tuple[int, ...]
    kv_scales: Mapping[str, str]

    @property
    def suffixes(self) -> tuple[str, str, str, str]:
        """Packed weight, block scale, global scale, input global scale."""
        return self.packed_weight, self.block_scale, self.global_scale, self.input_global_scale

    def to_stored(self, scale: torch.Tensor) -> torch.Tensor:
        """A decode-direction float32 scale as this layout stores it."""
        stored = scale.reciprocal() if self.reciprocal else scale
        return stored.reshape(self.scalar_shape)

    def from_stored(self, stored: torch.Tensor) -> torch.Tensor:
        """The inverse of :meth:`to_stored`, float32 []. Shapes [] and [1] are both read."""
        scale = stored.reshape(())
        return scale.reciprocal() if self.reciprocal else scale


CANONICAL = Layout(
    name="canonical",
    packed_weight="packed_weight",
    block_scale="block_scale",
    global_scale="global_scale",
    input_global_scale="input_global_scale",
    reciprocal=False,
    scalar_shape=(),
    kv_scales={"k_scale": "k_scale", "v_scale": "v_scale"},
)
MODELOPT = Layout(
    name="modelopt",
    packed_weight="weight",
    block_scale="weight_scale",
    global_scale="weight_scale_2",
    input_global_scale="input_scale",
    reciprocal=False,
    scalar_shape=(),
    kv_scales={"k_scale": "k_proj.k_scale", "v_scale": "v_proj.v_scale"},
)
COMPRESSED_TENSORS = Layout(
    name="compressed-tensors",
    packed_weight="weight_packed",
    block_scale="weight_scale",
    global_scale="weight_global_scale",
    input_global_scale="input_global_scale",
    reciprocal=True,
    scalar_shape=(1,),
    kv_scales={"k_scale": "k_scale", "v_scale": "v_scale"},
)
#: What an artifact may hold beside a scale; see :mod:`fourfold.artifact`.
ENCODE_SUFFIXES = ("global_encode_scale", "input_global_encode_scale")
LAYOUTS = {layout.name: layout for layout in (CANONICAL, MODELOPT, COMPRESSED_TENSORS)}


def is_kv_scale(entry: TensorEntry) -> bool:
    """Whether a KV scale is one number that loaders read as it is; llm-compressor stores BF16 [1]."""
    return entry.numel == 1 and entry.dtype in ("F32", "BF16", "F16")


def get_layout(name: str) -> Layout:
    """The layout, or :class:`UnknownNameError` with the known names."""
    try:
        return LAYOUTS[name]
    except KeyError:
        raise UnknownNameError("layout", name, tuple(LAYOUTS)) from None


def detect_layout(tensors: TensorFolder) -> Layout:
    """The layout whose global scales stand in the folder; :class:`CheckpointError` when none or two do."""
    found = {
        layout.name: layout
        for layout in LAYOUTS.values()
        for name in tensors.tensors
        if name.endswith(f".{layout.global_scale}")
    }
    if len(found) != 1:
        seen = f"mixes {', '.join(sorted(found))}" if found else "holds no NVFP4 global scales"
        raise CheckpointError(f"{tensors.path}: {seen}; known layouts: {', '.join(sorted(LAYOUTS))}")
    return next(iter(found.values()))
