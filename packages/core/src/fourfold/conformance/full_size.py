"""A random checkpoint of the size of Gemma 4 26B-A4B, or a cut of it, for figures of time and memory.

    python -m fourfold.conformance.full_size FOLDER [--layers 30] [--experts 128] [--vocabulary 262144] [--text-only]

The text model's sizes are those of google/gemma-4-26B-A4B-it; special token ids, tokenizer and side files are the
demo model's, whose 2,048 tokens are a subset as far as shapes go. All 30 layers take 52 GB of disk; memory stays at a
few MB, and the disk bounds the time. Values are normal numbers out of one block of 64 MB, laid end to end from a place
that depends on the tensor: matrices differ, and nothing about them is trained.
"""

from __future__ import annotations

import argparse
import json
import shutil
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

from fourfold.checkpoint.index import CONFIG_FILE, TensorFolder
from fourfold.checkpoint.stream import ShardWriter

_FACTS = Path(__file__).with_name("gemma-4-26b-a4b.json")
#: Numbers in the block; a prime, so that rows of a tensor never repeat at its own period.
_BLOCK = 33_554_393
_BYTES = 2
_STD = 0.02
_SHARD_BYTES = 4 * 2**30


@dataclass(frozen=True)
class RandomTensor:
    """BF16 numbers that are made as they are written; see :class:`fourfold.checkpoint.stored.Stored`."""

    name: str
    shape: tuple[int, ...]
    seed: int
    dtype: str = "BF16"

    def pieces(self) -> Iterator[memoryview]:
        """The block from the tensor's own place on, as often as it takes; norms and scalars are near one."""
        import torch

        from fourfold.checkpoint.dtypes import host_bytes

        if len(self.shape) < 2:
            generator = torch.Generator().manual_seed(zlib.crc32(self.name.encode()) + self.seed)
            values = torch.rand(self.shape or (1,), generator=generator) * 0.2 + 0.9
            yield host_bytes(values.to(torch.bfloat16))
            return
        block = _block(self.seed)
        left, start = prod(self.shape) * _BYTES, zlib.crc32(self.name.encode()) % _BLOCK * _BYTES
        while left:
            piece = block[start : start + left]
            left, start = left - len(piece), 0
            yield piece


@cache
def _block(seed: int) -> memoryview:
    import torch

    from fourfold.checkpoint.dtypes import host_bytes

    generator = torch.Generator().manual_seed(seed)
    return host_bytes((torch.randn(_BLOCK, generator=generator) * _STD).to(torch.bfloat16))


def full_size_config(
    layers: int | None = None, experts: int | None = None, vocabulary: int | None = None, *, text_only: bool = False
) -> dict[str, Any]:
    """``config.json`` of the 26B, or with fewer layers, experts or words. ``text_only`` leaves the vision tower out.

    A cut of layers keeps both kinds of attention, sliding first, as soon as there are two.
    """
    config: dict[str, Any] = json.loads(_FACTS.read_text(encoding="utf-8"))
    text = config["text_config"]
    if layers is not None:
        # The last layer attends to everything in every Gemma 4, and the config class insists on it.
        text["layer_types"] = [*text["layer_types"][: layers - 1], "full_attention"]
        text["num_hidden_layers"] = layers
    if experts is not None:
        text["num_experts"], text["top_k_experts"] = experts, min(experts, text["top_k_experts"])
    if vocabulary is not None:
        text["vocab_size"] = text["vocab_size_per_layer_input"] = vocabulary
    if text_only:
        config["vision_config"] = None
    return config


def make_full_size(folder: Path, config: dict[str, Any], seed: int = 0) -> Path:
    """Write the checkpoint that ``config`` describes into ``folder``, which is made, and return it."""
    from fourfold.demo import model_path
    from fourfold.verify.expected import imagine_source

    folder.mkdir(parents=True)
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    for name in TensorFolder(model_path()).side_files():
        shutil.copyfile(model_path() / name, folder / name)
    shards = ShardWriter(folder, max_shard_bytes=_SHARD_BYTES)
    for entry in imagine_source(config, folder).tensors.values():
        shards.add_stored(entry.name, RandomTensor(entry.name, entry.shape, seed))
    shards.finish()
    return folder


def main(arguments: list[str] | None = None) -> None:
    """Parse and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int)
    parser.add_argument("--experts", type=int)
    parser.add_argument("--vocabulary", type=int)
    parser.add_argument("--text-only", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    config = full_size_config(given.layers, given.experts, given.vocabulary, text_only=given.text_only)
    make_full_size(given.folder, config, given.seed)


if __name__ == "__main__":
    main()
