"""How servers match the names in a checkpoint's ignore list and target list.

``modelopt``: shell wildcards over the whole name; vLLM also takes each entry, a trailing ``*`` removed, as a
substring (``ModelOptQuantConfigBase.is_layer_excluded``), so ``layers.1*`` catches layers 10 to 19 too.
``compressed-tensors``: a whole name, or ``re:`` and a regular expression matched from the start.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from fnmatch import translate
from functools import cache

from fourfold.checkpoint.layouts import COMPRESSED_TENSORS, Layout
from fourfold.verify.expressions import MAX_LENGTH, UnboundedError, compile_bounded

#: Class names that mean "every linear" in a target list.
LINEAR_CLASSES = frozenset({"Linear"})
_REGEX = "re:"


@cache
def matcher(pattern: str, layout: str) -> Callable[[str], bool]:
    """Whether ``pattern`` means a module, by the layout's own rule (no substrings).

    A broken regex, and one that might never end, matches nothing.
    """
    if layout == COMPRESSED_TENSORS.name and not pattern.startswith(_REGEX):
        return pattern.__eq__
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
        self._exact = {p for p in patterns if exact_only and not any(c in p for c in "*?[") and p[:3] != _REGEX}
        self._others = [(p, kind(p, layout.name)) for p in patterns if p not in self._exact]

    def match(self, name: str) -> str | None:
        """The first pattern that covers ``name``, or None."""
        if name in self._exact:
            return name
        return next((pattern for pattern, covers in self._others if covers(name)), None)
