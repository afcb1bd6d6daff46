"""The small vocabulary that the generators share: people, things, places, colours."""

from __future__ import annotations

from random import Random

#: (name, subject pronoun, object pronoun, possessive)
PEOPLE: tuple[tuple[str, str, str, str], ...] = (
    *((name, "she", "her", "her") for name in (
        "Mia", "Anna", "Lily", "Ruth", "Clara", "Nora", "Eva", "Ida", "Grace", "Helen", "Rosa", "Sara",
    )),
    *((name, "he", "him", "his") for name in (
        "Tom", "Ben", "Sam", "Leo", "Max", "Oscar", "Paul", "Hugo", "Adam", "Felix", "Noah", "Jack",
    )),
)  # fmt: skip

COUNTABLES = (
    "apples", "books", "coins", "stamps", "cards", "shells", "stones", "pens", "cups", "buttons", "candles", "eggs",
    "roses", "marbles", "tickets", "boxes", "plums", "nails", "bottles", "letters", "seeds", "cookies", "keys",
    "ribbons",
)  # fmt: skip

PLACES = (
    "market", "harbor", "garden", "library", "forest", "station", "bridge", "village", "mill", "school", "meadow",
    "castle", "beach", "tower", "valley", "bakery",
)  # fmt: skip

SYSTEMS = (
    "You are a helpful assistant.",
    "Answer carefully.",
    "You are a careful assistant. Follow every instruction.",
)


def pick_system(rng: Random) -> str:
    """A system turn for one conversation in eight, otherwise none."""
    return rng.choice(SYSTEMS) if rng.random() < 0.125 else ""
