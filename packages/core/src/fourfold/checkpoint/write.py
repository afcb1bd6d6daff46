"""Writing a checkpoint in a layout from an artifact: the part every exporter shares."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fourfold.artifact import GLOBAL_SCALE, INPUT_GLOBAL_SCALE, Artifact
from fourfold.checkpoint.layouts import CANONICAL, Layout
from fourfold.checkpoint.stream import DEFAULT_SHARD_BYTES, ShardWriter

if TYPE_CHECKING:
    from fourfold.progress import Progress

#: A tensor's new name: layout suffix, and whether its value changes direction.
_SCALES = (GLOBAL_SCALE, INPUT_GLOBAL_SCALE)


def write_checkpoint(
    artifact: Artifact,
    destination: Path,
    layout: Layout,
    json_files: Mapping[str, Mapping[str, Any]],
    progress: Progress,
    *,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
) -> None:
    """Write ``artifact`` into ``destination`` under ``layout``, with ``json_files`` and the source's side files.

    Packed weights, block scales and kept tensors move byte for byte; only global scales change, by the layout's
    direction and shape. Memory is bounded by a shard.
    """
    tensors = artifact.tensors
    progress.begin(f"export {layout.name}", total=sum(e.nbytes for e in tensors), unit="B")
    shards = ShardWriter(destination, max_shard_bytes=max_shard_bytes)
    modules = frozenset(artifact.manifest.quantized_modules)
    for entry in tensors:
        module, _, suffix = entry.name.rpartition(".")
        tensor = tensors.read(entry.name)
        if module in modules and suffix in CANONICAL.suffixes:
            stored = layout.to_stored(tensor) if suffix in _SCALES else tensor
            shards.add(f"{module}.{getattr(layout, suffix)}", stored)
        elif suffix in layout.kv_scales:
            shards.add(f"{module}.{layout.kv_scales[suffix]}", tensor.reshape(layout.scalar_shape))
        else:
            shards.add(entry.name, tensor)
        progress.advance(entry.nbytes)
    shards.finish()
    for name, content in json_files.items():
        text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        (destination / name).write_text(text, encoding="utf-8")
    for name in tensors.side_files():
        shutil.copyfile(artifact.path / name, destination / name)
