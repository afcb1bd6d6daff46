"""Two JSON objects as facts: where they say different things, whatever the spelling.

A key that is absent says its default: what the library takes where nothing is stated, and null where it knows no key of
that name. Tools that save a config write such defaults out, or leave them out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

ABSENT = "absent"
#: Keys that every write of a config changes, and that no server computes with.
_FREE_KEYS = frozenset({"transformers_version", "_name_or_path"})

_MAX_SHOWN = 200


class Difference(NamedTuple):
    """One fact that differs: its dotted key, and both values (:data:`ABSENT` where not stated)."""

    key: str
    found: object
    expected: object


@dataclass(frozen=True)
class Defaults:
    """What absent keys of an object mean, and those of its sections (which have no default themselves)."""

    values: Mapping[str, Any] = field(default_factory=dict)
    sections: Mapping[str, Defaults] = field(default_factory=dict)


def differences(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], defaults: Defaults, prefix: str = ""
) -> Iterator[Difference]:
    """Every fact that the two objects do not share, in the order of its key."""
    for key in sorted((ours.keys() | theirs.keys()) - _FREE_KEYS):
        default = defaults.values.get(key)
        found, expected = ours.get(key, default), theirs.get(key, default)
        if isinstance(found, Mapping) and isinstance(expected, Mapping) and key in ours and key in theirs:
            yield from differences(found, expected, defaults.sections.get(key, Defaults()), f"{prefix}{key}.")
        elif not same(found, expected):
            yield Difference(prefix + key, ours.get(key, ABSENT), theirs.get(key, ABSENT))


def same(found: object, expected: object) -> bool:
    """Whether a JSON value is the ``expected`` one. True is not 1, and 30 will do for 30.0, but not 30.0 for 30: where
    a whole number is expected, libraries refuse another or go on with it.
    """
    if type(found) is int and type(expected) is float:
        return found == expected
    return json.dumps(found, sort_keys=True) == json.dumps(expected, sort_keys=True)


def shown(value: object) -> str:
    """A value as a finding shows it."""
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def num_leaves(section: Mapping[str, Any]) -> int:
    """How many values stand in an object, at any depth."""
    return sum(num_leaves(value) if isinstance(value, Mapping) else 1 for value in section.values())
