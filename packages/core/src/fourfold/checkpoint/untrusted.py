"""Reading what somebody else made: a model folder, a checkpoint, their JSON.

Nothing here trusts a file's own word about its size, its shape or its place. What is refused is a
:class:`CheckpointError` with the file's name; memory is bounded by constants, whatever the file holds.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from fourfold.errors import CheckpointError

#: Largest JSON file that is parsed. A tokenizer of 262,144 words has 33 MB, the index of 3,840 experts 6 MB.
MAX_JSON_BYTES = 64 * 2**20
#: Most values in a JSON text: each costs some 60 to 100 bytes once parsed, and more where it is checked.
MAX_JSON_VALUES = 1_000_000
#: The same for shard headers and tokenizers: the tokenizer of 262,144 words has 1.8 million.
MAX_LARGE_JSON_VALUES = 4_000_000
#: A config has five levels, a header three.
MAX_JSON_DEPTH = 32
#: Longest tensor name. Gemma 4's longest has 80 characters.
MAX_NAME = 256
#: How half a surrogate pair is spelled, the only way it can get past UTF-8.
_SURROGATE = rb"\ud"
#: Longest piece of a file's own text that is repeated in a message.
_MAX_SHOWN = 400


def read_json(path: Path, *, max_values: int = MAX_JSON_VALUES) -> Any:
    """Parse a JSON file; :class:`CheckpointError` names the file for whatever is wrong with it.

    Refused: no regular file, a link that leaves its folder, over :data:`MAX_JSON_BYTES`, not UTF-8, over
    ``max_values`` values or :data:`MAX_JSON_DEPTH` levels, a key that stands twice in one object (parsers differ in
    which they take).
    """
    target = outside(path, path.parent)
    if target is not None:
        raise CheckpointError(f"{path}: is a link out of its folder, to {target}; replace it by the file")
    try:
        descriptor, status = open_regular(path)
        with os.fdopen(descriptor, "rb") as file:
            if status.st_size > MAX_JSON_BYTES:
                raise CheckpointError(f"{path}: {status.st_size} bytes of JSON; the limit is {MAX_JSON_BYTES}")
            # One byte more shows a file that has grown since.
            data = file.read(MAX_JSON_BYTES + 1)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: not there") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from None
    try:
        value, twice = parse_json(data[:MAX_JSON_BYTES], max_values)
    except ValueError as error:
        raise CheckpointError(f"{path}: not valid JSON ({error})") from None
    if twice:
        raise CheckpointError(f"{path}: not valid JSON (key {printable(twice[0])!r} stands twice in one object)")
    return value


def parse_json(data: bytes, max_values: int) -> tuple[Any, list[str]]:
    """The value of a JSON text in UTF-8, and the keys that stand twice in an object. ValueError says what is wrong."""
    # Every value but the first follows a comma or an opening bracket; commas inside strings count too.
    if sum(data.count(mark) for mark in (b",", b"[", b"{")) >= max_values:
        raise ValueError(f"over {max_values} values")
    twice: list[str] = []

    def collect(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) != len(pairs):
            seen: set[str] = set()
            for key, _ in pairs:
                if key in seen:
                    twice.append(key)
                seen.add(key)
        return table

    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=collect)
    except RecursionError:
        raise ValueError(f"nested deeper than {MAX_JSON_DEPTH} levels") from None
    except ValueError as error:
        raise ValueError(printable(str(error))) from None
    if _is_deep(value):
        raise ValueError(f"nested deeper than {MAX_JSON_DEPTH} levels")
    if _SURROGATE in data.lower() and half_surrogate(value) is not None:
        raise ValueError("half of a surrogate pair, which is no character")
    return value, twice


def half_surrogate(value: Any) -> str | None:
    """The first half of a surrogate pair in a JSON value's strings, as JSON spells it; None where there is none."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        return f"\\u{ord(error.object[error.start]):04x}"
    return None


def _is_deep(value: object) -> bool:
    """Whether JSON is nested so deep that comparing or printing it could exhaust the stack."""
    level = [value]
    for _ in range(MAX_JSON_DEPTH):
        inner = [item for item in level if isinstance(item, (dict, list))]
        if not inner:
            return False
        level = [v for item in inner for v in (item.values() if isinstance(item, dict) else item)]
    return True


def open_regular(path: Path) -> tuple[int, os.stat_result]:
    """A descriptor of a regular file, and what the system says of it; OSError for anything else.

    A pipe, a socket or a device is refused without waiting for it and without reading from it.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(None, "no regular file", str(path))
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise OSError(None, "no regular file", str(path))
    return descriptor, status


def outside(path: Path, folder: Path) -> Path | None:
    """Where ``path`` really stands, when that is outside ``folder``; None when it is inside.

    A snapshot in a hub cache may link to the blobs of its own repository.
    """
    try:
        root, target = folder.resolve(), path.resolve()
    except (OSError, RuntimeError):
        return path  # a loop of links
    if target.is_relative_to(root):
        return None
    blobs = root.parent.parent / "blobs" if root.parent.name == "snapshots" else None
    return None if blobs is not None and target.is_relative_to(blobs) else target


def name_fault(name: str) -> str | None:
    """What keeps ``name`` from being a tensor's or a shard's; None when nothing does."""
    if len(name) > MAX_NAME:
        return f"the name {name[:40]!r}... of {len(name)} characters; the limit is {MAX_NAME}"
    return None if name.isprintable() else f"the name {name!r}, which cannot be printed"


def printable(text: str, limit: int = _MAX_SHOWN) -> str:
    """``text`` fit for a terminal and for JSON: control characters and broken Unicode escaped, cut at ``limit``."""
    shown = text if len(text) <= limit else f"{text[:limit]}..."
    if shown.isprintable():
        return shown
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in shown)
