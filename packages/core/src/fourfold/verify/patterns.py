"""How servers match the names in a checkpoint's ignore list and target list.

``modelopt``: shell wildcards over the whole name; vLLM also takes each entry, a trailing ``*`` removed, as a
substring (``ModelOptQuantConfigBase.is_layer_excluded``), so ``layers.1*`` catches layers 10 to 19 too.
``compressed-tensors``: a whole name, or ``re:`` and a regular expression matched from the start.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from fnmatch import translate
from functools import lru_cache

from fourfold.checkpoint.layouts import COMPRESSED_TENSORS, Layout
from fourfold.verify.expressions import MAX_LENGTH, UnboundedError, compile_bounded

#: Class names that mean "every linear" in a target list.
LINEAR_CLASSES = frozenset({"Linear"})
_REGEX = "re:"
#: So many entries of a list are looked at: every module of a 26B model twice over.
MAX_ENTRIES = 50_000
#: More patterns in a list are not looked at, and are a finding (FF118): each is kept as an automaton of some 100 KB.
MAX_PATTERNS = 1_000


def is_pattern(entry: str, layout: str) -> bool:
    """Whether an entry is a pattern and not a name."""
    if layout == COMPRESSED_TENSORS.name:
        return entry.startswith(_REGEX)
    return any(c in entry for c in "*?[")


def bounded(entries: Iterable[str], layout: str) -> list[str]:
    """What is looked at of a list: the first :data:`MAX_PATTERNS` patterns, and names up to :data:`MAX_ENTRIES`."""
    room = MAX_PATTERNS
    kept: list[str] = []
    for entry in entries:
        if is_pattern(entry, layout):
            room -= 1
            if room < 0:
                continue
        kept.append(entry)
        if len(kept) == MAX_ENTRIES:
            break
    return kept


def covered(entry: str, layout: str, names: Collection[str]) -> list[str]:
    """Those of ``names`` that an entry means, by the layout's own rule."""
    if not is_pattern(entry, layout):
        return [entry] if entry in names else []
    return list(filter(matcher(entry, layout), names))


def matcher(pattern: str, layout: str) -> Callable[[str], bool]:
    """Whether ``pattern`` means a module, by the layout's own rule (no substrings).

    A broken regex, and one that might never end, matches nothing.
    """
    return _compiled(pattern, layout) if is_pattern(pattern, layout) else pattern.__eq__


@lru_cache(maxsize=MAX_PATTERNS)
def _compiled(pattern: str, layout: str) -> Callable[[str], bool]:
    if layout == COMPRESSED_TENSORS.name:
        try:
            return compile_bounded(pattern.removeprefix(_REGEX))
        except ValueError:
            return frozenset[str]().__contains__
    if len(pattern) > MAX_LENGTH:
        return frozenset[str]().__contains__
    # A translated wildcard does not backtrack over what a wildcard before it took.
    compiled = re.compile(translate(pattern))
    return lambda name: compiled.match(name) is not None


def unbounded(pattern: str, layout: str) -> str | None:
    """Why no time can be promised for matching ``pattern``; None when it can."""
    if layout == COMPRESSED_TENSORS.name and pattern.startswith(_REGEX):
        try:
            compile_bounded(pattern.removeprefix(_REGEX))
        except UnboundedError as error:
            return str(error)
        except ValueError:
            return None
    if len(pattern) > MAX_LENGTH:
        return f"it has {len(pattern)} characters; the limit is {MAX_LENGTH}"
    return None


def catches(pattern: str, layout: str) -> Callable[[str], bool]:
    """Whether a server takes ``pattern`` to cover a module, vLLM's substring match of modelopt included."""
    means = matcher(pattern, layout)
    if layout == COMPRESSED_TENSORS.name:
        return means
    stem = pattern.removesuffix(".*").removesuffix("*")
    return lambda name: means(name) or (bool(stem) and "*" not in stem and stem in name)


def means_by_parts(pattern: str, name: str) -> bool:
    """Whether a modelopt pattern means ``name`` by whole parts: ``layers.1*`` means layer 1 and what is under it."""
    stem = pattern.removesuffix("*").removesuffix(".")
    return "*" in stem or name == stem or name.startswith(f"{stem}.")


class PatternList:
    """A list of patterns, asked about many names: whole names in a set, the rest one by one."""

    def __init__(self, patterns: Iterable[str], layout: Layout, *, as_server: bool = True) -> None:
        kind = catches if as_server else matcher
        exact_only = layout is COMPRESSED_TENSORS or not as_server
        looked_at = bounded(patterns, layout.name)
        self._exact = {p for p in looked_at if exact_only and not is_pattern(p, layout.name)}
        self._others = [(p, kind(p, layout.name)) for p in looked_at if p not in self._exact]

    def match(self, name: str) -> str | None:
        """The first pattern that covers ``name``, or None."""
        if name in self._exact:
            return name
        return next((pattern for pattern, covers in self._others if covers(name)), None)
