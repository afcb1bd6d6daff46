"""Regular expressions out of a checkpoint, matched in time that grows with the name and not with its powers.

Servers hand the ``re:`` entries of an ignore list to Python's backtracking matcher. ``(a+)+$`` or ``.*.*.*.*x`` then
takes longer than anybody waits, for one module name. Here an expression becomes a nondeterministic automaton whose set
of states is followed character by character (Thompson 1968), so a name of n characters costs n steps, and what
``re.match`` would say is said all the same: groups, classes, alternatives, every quantifier, ``^`` and ``$``.

What is no regular language (look-around, backreferences) goes to ``re`` where it cannot take long, and is refused
otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

#: Longest expression, deepest nesting, most states; an ignore list's longest have some 80 characters.
MAX_LENGTH: Final = 1000
_MAX_DEPTH, _MAX_STATES, _MAX_CACHED = 20, 4000, 2000
#: Most quantifiers of an expression that is left to ``re``: over names of 256 characters, a moment's work.
_MAX_QUANTIFIERS = 2
_START, _END = "^", "$"
_QUANTIFIER = re.compile(r"[*+?]|\{(\d{1,4})\}|\{(\d{0,4}),(\d{0,4})\}")
_GROUP = re.compile(r"\((\?:|\?P<\w+>)?(?!\?)")
_ESCAPE = re.compile(r"\\(?:[AZ]|[dDwWsS]|[^\w\s]|[tnrfv])")
_CLASS = re.compile(r"\[\^?\]?(?:\\.|[^\]\\])*\]")
#: What ``re`` may match although no automaton is built for it.
_LOOK_AROUND = re.compile(r"\(\?<?[=!]|\\[bB]|^\(\?[a-z]+\)")

Node = tuple[str, Any]


class UnboundedError(ValueError):
    """An expression that no time can be promised for; the message is the reason."""


def compile_bounded(expression: str) -> Callable[[str], bool]:
    """A function that says whether ``expression`` matches a name from its start, as ``re.match`` does.

    ValueError for an expression that ``re`` itself does not take; :class:`UnboundedError` for one that might not end.
    """
    if len(expression) > MAX_LENGTH:
        raise UnboundedError(f"it has {len(expression)} characters; the limit is {MAX_LENGTH}")
    try:
        compiled = re.compile(expression)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(str(error)) from None
    try:
        return _Automaton(_Parser(expression).parse()).match
    except _NotRegularError as error:
        quantifiers = len(re.findall(r"(?<!\\)[*+{]", expression))
        repeated_group = re.search(r"\)[*+{]", expression)
        if _LOOK_AROUND.search(expression) and quantifiers <= _MAX_QUANTIFIERS and not repeated_group:
            return lambda name: compiled.match(name) is not None
        raise UnboundedError(str(error)) from None


class _NotRegularError(ValueError):
    """Valid for ``re``, but no regular language, or one this parser does not know."""


class _Parser:
    """Recursive descent over the expression; nodes are (kind, content) pairs."""

    def __init__(self, text: str) -> None:
        self._text, self._at = text, 0

    def parse(self) -> Node:
        """The whole expression."""
        node = self._alternatives(0)
        if self._at < len(self._text):
            raise _NotRegularError(f"{self._text[self._at :][:20]!r} is not understood")
        return node

    def _alternatives(self, depth: int) -> Node:
        if depth > _MAX_DEPTH:
            raise _NotRegularError("its groups are nested too deep")
        branches = [self._sequence(depth)]
        while self._text[self._at : self._at + 1] == "|":
            self._at += 1
            branches.append(self._sequence(depth))
        return branches[0] if len(branches) == 1 else ("any", branches)

    def _sequence(self, depth: int) -> Node:
        parts: list[Node] = []
        while self._at < len(self._text) and self._text[self._at] not in "|)":
            parts.append(self._quantified(self._atom(depth)))
        return ("all", parts)

    def _quantified(self, atom: Node) -> Node:
        found = _QUANTIFIER.match(self._text, self._at)
        if found is None:
            return atom
        self._at = found.end()
        follow = self._text[self._at : self._at + 1]
        if follow == "?":  # lazy: the same matches
            self._at += 1
        elif follow == "+":
            raise _NotRegularError("possessive quantifiers are not understood")
        low, high = {"*": (0, None), "+": (1, None), "?": (0, 1)}.get(found[0], (0, None))
        if found[0][0] == "{":
            low = int(found[1] or found[2] or 0)
            high = low if found[1] else (int(found[3]) if found[3] else None)
        return ("repeat", (atom, low, high))

    def _atom(self, depth: int) -> Node:
        char = self._text[self._at]
        if char == "(":
            group = _GROUP.match(self._text, self._at)
            if group is None:
                raise _NotRegularError(f"{self._text[self._at : self._at + 4]!r} is no plain group")
            self._at = group.end()
            node = self._alternatives(depth + 1)
            self._at += 1  # re has checked that it closes
            return node
        for kind, pattern in (("[", _CLASS), ("\\", _ESCAPE)):
            if char == kind:
                found = pattern.match(self._text, self._at)
                if found is None:
                    raise _NotRegularError(f"{self._text[self._at : self._at + 4]!r} is not understood")
                self._at = found.end()
                if found[0] in (r"\A", r"\Z"):
                    return ("edge", _START if found[0] == r"\A" else _END)
                return ("char", found[0])
        self._at += 1
        if char in (_START, _END):
            return ("edge", char)
        return ("char", char if char == "." else re.escape(char))


@dataclass(slots=True)
class _Place:
    """A set of states that some beginning of a name leads to, and where each next character leads from there."""

    states: frozenset[int]
    accepts: bool
    accepts_at_end: bool
    moves: dict[str, _Place]


class _Automaton:
    """States with moves by a character and moves by nothing; sets of states are computed once and kept."""

    def __init__(self, node: Node) -> None:
        self._free: list[list[tuple[int, str]]] = []  # state -> (state, "" or the edge it holds at)
        self._moves: dict[int, tuple[Callable[[str], object], int]] = {}
        self._accept = self._new()
        self._start = self._build(node, self._accept)
        self._places: dict[frozenset[int], _Place] = {}
        self._first = self._place(frozenset({self._start}), _START)

    def _new(self) -> int:
        if len(self._free) >= _MAX_STATES:
            raise _NotRegularError("it repeats too much")
        self._free.append([])
        return len(self._free) - 1

    def _build(self, node: Node, after: int) -> int:
        """The state in which ``node`` begins, when ``after`` is where it ends."""
        kind, content = node
        if kind == "all":
            for part in reversed(content):
                after = self._build(part, after)
            return after
        state = self._new()
        if kind == "char":
            self._moves[state] = (re.compile(content).fullmatch, after)
        elif kind == "edge":
            self._free[state].append((after, str(content)))
        elif kind == "any":
            self._free[state] = [(self._build(branch, after), "") for branch in content]
        else:
            self._repeat(state, content, after)
        return state

    def _repeat(self, state: int, content: Any, after: int) -> None:
        inner, low, high = content
        if high is None:
            loop = self._new()
            self._free[loop] = [(after, ""), (self._build(inner, loop), "")]
            after = loop
        for _ in range((high or low) - low):
            option = self._new()
            self._free[option] = [(after, ""), (self._build(inner, after), "")]
            after = option
        for _ in range(low):
            after = self._build(inner, after)
        self._free[state].append((after, ""))

    def match(self, name: str) -> bool:
        """Whether some beginning of ``name`` is in the language."""
        if not name:
            return self._accept in self._closure(frozenset({self._start}), _START + _END)
        place = self._first
        for char in name:
            if place.accepts:
                return True
            place = place.moves.get(char) or self._step(place, char)
        return place.accepts or place.accepts_at_end

    def _step(self, place: _Place, char: str) -> _Place:
        after = frozenset(self._moves[s][1] for s in place.states if s in self._moves and self._moves[s][0](char))
        if after not in self._places:
            if len(self._places) > _MAX_CACHED:
                self._places.clear()
                self._first.moves.clear()
            self._places[after] = self._place(after, "")
        place.moves[char] = self._places[after]
        return self._places[after]

    def _place(self, states: frozenset[int], edges: str) -> _Place:
        closure, at_end = self._closure(states, edges), self._closure(states, _END)
        return _Place(closure, self._accept in closure, self._accept in at_end, {})

    def _closure(self, states: frozenset[int], edges: str) -> frozenset[int]:
        seen, waiting = set(states), list(states)
        while waiting:
            for state, edge in self._free[waiting.pop()]:
                if state not in seen and edge in edges:
                    seen.add(state)
                    waiting.append(state)
        return frozenset(seen)
