"""Mutations that keep JSON mostly JSON, so that what is behind the parser is reached."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

#: Values that readers are prone to fall over.
NASTY: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 16, 2**31, 2**47, 2**63, -(2**63), 10**400, 1e308, -0.0, "", "x", "\u0000", "\ud800",
    "\x1b[2J", "../../etc/passwd", "/etc/passwd", "re:(a+)+$", "re:(", "re:.*.*.*.*.*.*x", "*", "[", "a" * 300,
    [], {}, [[]], {"": {}}, [1, 2], "U8", "F4", "BF16", "config.json", "model-00001-of-00002.safetensors",
)  # fmt: skip


def mutate_json(data: bytes, rng: random.Random) -> bytes:
    """Change one to four places of a JSON text; text that is none is changed by bytes."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return mutate_bytes(data, rng)
    for _ in range(rng.randint(1, 4)):
        value = _mutate(value, rng)
    text = json.dumps(value)
    if rng.random() < 0.05:
        text = text.replace('":', '": 0, "x":', 1) if rng.random() < 0.5 else _repeat_key(text, rng)
    return text.encode("utf-8", "surrogatepass")


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Overwrite, drop or repeat a few bytes."""
    content = bytearray(data or b"{}")
    for _ in range(rng.randint(1, 8)):
        at = rng.randrange(len(content) or 1)
        choice = rng.random()
        if choice < 0.5 and content:
            content[at] = rng.randrange(256)
        elif choice < 0.75:
            del content[at : at + rng.randint(1, 16)]
        else:
            content[at:at] = content[at : at + rng.randint(1, 16)] or b"["
    return bytes(content)


def _mutate(value: Any, rng: random.Random) -> Any:
    place, key = _pick(value, rng)
    if place is None:
        return copy.deepcopy(rng.choice(NASTY))
    action = rng.random()
    if action < 0.55:
        place[key] = copy.deepcopy(rng.choice(NASTY))
    elif action < 0.7:
        del place[key]
    elif action < 0.85 and isinstance(place, dict):
        new = rng.choice([n for n in NASTY if isinstance(n, str)])
        place[new if rng.random() < 0.5 else f"{key}{new}"[:400]] = place.pop(key)
    elif isinstance(place, dict):
        other = rng.choice(list(place))
        place[key], place[other] = place[other], place[key]
    else:
        place.insert(key, copy.deepcopy(place[key]))
    return value


def _pick(value: Any, rng: random.Random) -> tuple[Any, Any]:
    """A container and one of its keys, by a walk from the top; (None, None) for a scalar."""
    place, key = None, None
    while isinstance(value, (dict, list)) and value and (place is None or rng.random() < 0.8):
        place = value
        key = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
        value = value[key]
    return place, key


def _repeat_key(text: str, rng: random.Random) -> str:
    starts = [i for i in range(len(text)) if text.startswith('{"', i)]
    if not starts:
        return text
    at = rng.choice(starts)
    end = text.find('":', at + 2)
    return f"{text[: at + 1]}{text[at + 1 : end + 2]} 0, {text[at + 1 :]}" if end > 0 else text
