"""How many bytes of each dtype a folder's shards hold, from their headers alone.

A plan must not map 50 GB, nor wait for torch to be imported, to add up sizes. The offsets of a safetensors header
cover its file exactly, so a shard that is shorter than they say was cut off, and is refused here instead of by vLLM
after minutes.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from fourfold.checkpoint.index import INDEX_FILE, SINGLE_FILE
from fourfold.checkpoint.untrusted import MAX_LARGE_JSON_VALUES, parse_json, read_json
from fourfold.errors import CheckpointError

_LENGTH_BYTES = 8
#: The limit of the safetensors library itself.
_MAX_HEADER_BYTES = 100_000_000


def stored_bytes(checkpoint: Path) -> Counter[str]:
    """Bytes by safetensors dtype; :class:`CheckpointError` names a shard that is missing, cut off or something else."""
    total: Counter[str] = Counter()
    for file in _shards(checkpoint):
        total += _bytes_of(checkpoint / file)
    return total


def _shards(checkpoint: Path) -> list[str]:
    if not (checkpoint / INDEX_FILE).is_file():
        if not (checkpoint / SINGLE_FILE).is_file():
            raise CheckpointError(f"{checkpoint}: not a checkpoint, it has no {SINGLE_FILE} and no {INDEX_FILE}")
        return [SINGLE_FILE]
    index = read_json(checkpoint / INDEX_FILE)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{checkpoint / INDEX_FILE}: no weight_map")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if Path(name).name != name:
            raise CheckpointError(f"{checkpoint / INDEX_FILE}: shard {name!r} is not a file name inside the folder")
    return names


def _bytes_of(path: Path) -> Counter[str]:
    total: Counter[str] = Counter()
    size, length, text = _header(path)
    try:
        table, _ = parse_json(text, MAX_LARGE_JSON_VALUES)
        spans = [
            (entry["dtype"], *map(int, entry["data_offsets"])) for name, entry in table.items() if name[:2] != "__"
        ]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{path}: its header is no safetensors header") from None
    for dtype, begin, end in spans:
        total[str(dtype)] += end - begin
    expected = _LENGTH_BYTES + length + max((end for _, _, end in spans), default=0)
    if size < expected:
        raise CheckpointError(f"{path}: cut off, it has {size:,} bytes of {expected:,}; fetch it again")
    return total


def _header(path: Path) -> tuple[int, int, bytes]:
    """(size of the file, length of the header, the header's text)."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            if length > min(_MAX_HEADER_BYTES, size - _LENGTH_BYTES):
                raise CheckpointError(f"{path}: no safetensors file, or cut off in its header")
            return size, length, file.read(length)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
