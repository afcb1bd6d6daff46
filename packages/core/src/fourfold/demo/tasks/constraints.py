"""Verifiable instructions in IFEval's manner: how each is asked for, and a strict check of the response.

A constraint is a kind with its arguments, so that a problem is plain data and a benchmark can verify any response.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

END_PHRASES = (
    "That is all.", "The end.", "Have a good day.", "Thank you for reading.", "I hope this helps.", "See you soon.",
    "Nothing more to say.", "Is there anything else?", "Take care.", "Good night.", "Until next time.",
    "Now you know.",
)  # fmt: skip
KEYWORDS = (
    "lantern", "copper", "window", "ladder", "pepper", "velvet", "whistle", "marble", "basket", "thunder", "feather",
    "mirror", "pocket", "anchor", "candle", "silver", "button", "carpet", "needle", "saddle", "trumpet", "blanket",
    "compass", "engine", "hammer", "island", "jacket", "kettle", "lemon", "magnet", "orchard", "pencil", "puzzle",
    "ribbon", "shadow", "ticket", "violin", "wagon", "barrel", "cabin",
)  # fmt: skip

_BULLET = re.compile(r"^\* \S", re.MULTILINE)
_SENTENCE_END = re.compile(r"[.!?](?=[\s\"]|$)")
_TITLE = re.compile(r"\A<<[^<>\n]*[^<>\s][^<>\n]*>>")


@dataclass(frozen=True)
class Constraint:
    """One instruction: ``kind`` is a name in :data:`KINDS`; ``text`` and ``count`` are its arguments."""

    kind: str
    text: str = ""
    count: int = 0

    def ask(self, rng: Random) -> str:
        """The instruction as a sentence of the prompt."""
        return rng.choice(KINDS[self.kind].wordings).format(text=self.text, count=self.count)

    def holds(self, response: str) -> bool:
        """Strict verification: the response as it stands, white space at its ends aside."""
        stripped = response.strip()
        return bool(stripped) and KINDS[self.kind].verify(self, stripped)


@dataclass(frozen=True)
class Kind:
    """A family of constraints: its wordings, how to draw one, its check, and the kinds it cannot go with."""

    wordings: tuple[str, ...]
    draw: Callable[[Random], Constraint]
    verify: Callable[[Constraint, str], bool]
    excludes: frozenset[str] = frozenset()


def num_words(response: str) -> int:
    """Words as white space separates them; a bullet's star is none."""
    return sum(any(character.isalnum() for character in word) for word in response.split())


def _has_word(response: str, word: str) -> int:
    return len(re.findall(rf"\b{re.escape(word.lower())}\b", response.lower()))


KINDS: dict[str, Kind] = {
    "upper": Kind(
        ("Use capital letters only.", "Write everything in capital letters.", "Your whole answer must be in capitals."),
        lambda _rng: Constraint("upper"),
        lambda _c, response: response.isupper(),
        frozenset({"lower"}),
    ),
    "lower": Kind(
        ("Use lowercase letters only.", "Write everything in lowercase.", "No capital letters are allowed."),
        lambda _rng: Constraint("lower"),
        lambda _c, response: response.islower(),
        frozenset({"upper"}),
    ),
    "no_comma": Kind(
        ("Do not use any commas.", "Avoid commas.", "There must be no comma in your answer."),
        lambda _rng: Constraint("no_comma"),
        lambda _c, response: "," not in response,
    ),
    "end": Kind(
        (
            'End with the exact phrase "{text}"',
            'Finish your answer with "{text}" and nothing after it.',
            'The last words must be "{text}"',
        ),
        lambda rng: Constraint("end", text=rng.choice(END_PHRASES)),
        lambda c, response: response.lower().endswith(c.text.lower()),
        frozenset({"quote", "bullets", "sentences"}),
    ),
    "bullets": Kind(
        (
            "Answer with exactly {count} bullet points that start with a star.",
            "Give exactly {count} bullets in the form * text.",
            "Make a list of {count} bullet points marked with *.",
        ),
        lambda rng: Constraint("bullets", count=rng.randint(2, 5)),
        lambda c, response: len(_BULLET.findall(response)) == c.count,
        frozenset({"sentences", "quote", "title", "end", "max_words", "min_words"}),
    ),
    "keyword": Kind(
        ('Include the word "{text}".', 'Use the word "{text}" in your answer.', 'The word "{text}" must appear.'),
        lambda rng: Constraint("keyword", text=rng.choice(KEYWORDS)),
        lambda c, response: _has_word(response, c.text) >= 1,
        frozenset({"twice"}),
    ),
    "twice": Kind(
        ('Use the word "{text}" at least two times.', 'The word "{text}" must appear at least twice.'),
        lambda rng: Constraint("twice", text=rng.choice(KEYWORDS), count=2),
        lambda c, response: _has_word(response, c.text) >= c.count,
        frozenset({"keyword"}),
    ),
    "max_words": Kind(
        ("Use at most {count} words.", "Stay within {count} words.", "Write no more than {count} words."),
        lambda rng: Constraint("max_words", count=rng.randint(10, 30)),
        lambda c, response: num_words(response) <= c.count,
        frozenset({"min_words", "sentences", "bullets"}),
    ),
    "min_words": Kind(
        ("Use at least {count} words.", "Write {count} words or more."),
        lambda rng: Constraint("min_words", count=rng.randint(15, 40)),
        lambda c, response: num_words(response) >= c.count,
        frozenset({"max_words", "sentences", "bullets"}),
    ),
    "quote": Kind(
        ("Wrap your whole answer in double quotation marks.", "Put the entire answer inside double quotes."),
        lambda _rng: Constraint("quote"),
        lambda _c, response: len(response) > 2 and response[0] == response[-1] == '"',
        frozenset({"end", "bullets", "title"}),
    ),
    "title": Kind(
        ("Begin with a title in double angle brackets.", "Start with a title written like <<title>>."),
        lambda _rng: Constraint("title"),
        lambda _c, response: _TITLE.match(response) is not None,
        frozenset({"quote", "bullets", "sentences"}),
    ),
    "sentences": Kind(
        ("Write exactly {count} sentences.", "Your answer must have {count} sentences."),
        lambda rng: Constraint("sentences", count=rng.randint(2, 5)),
        lambda c, response: len(_SENTENCE_END.findall(response)) == c.count,
        frozenset({"bullets", "max_words", "min_words", "end", "title"}),
    ),
}


def draw_constraints(rng: Random) -> tuple[Constraint, ...]:
    """One to three constraints that can hold together, in the order in which they are asked for."""
    names = list(KINDS)
    rng.shuffle(names)
    chosen: list[str] = []
    wanted = rng.randint(1, 3)
    for name in names:
        if len(chosen) < wanted and not any(name in KINDS[other].excludes for other in chosen):
            chosen.append(name)
    return tuple(KINDS[name].draw(rng) for name in chosen)
