"""demo-prose: short plain-English stories for perplexity, KL and calibration.

A story follows one or two people, a thing and a place through an arc of five parts (opening, wish, trouble, help,
ending), so that names, things and pronouns recur and a model has something to look back at. The key is the whole
text.
"""

from __future__ import annotations

from random import Random

from fourfold.demo.tasks.problem import Problem, Task
from fourfold.demo.tasks.words import PEOPLE, PLACES

_ROLES = (
    "baker", "sailor", "teacher", "painter", "farmer", "tailor", "doctor", "gardener", "carpenter", "fisher", "singer",
    "clerk",
)  # fmt: skip
_THINGS = (
    "brass key", "old map", "blue kite", "wooden box", "silver ring", "small drum", "red scarf", "paper boat",
    "glass jar", "clay pot", "worn book", "green bottle", "long rope", "white hat", "black umbrella", "tin whistle",
)  # fmt: skip
_WEATHER = ("cold", "warm", "windy", "rainy", "bright", "foggy", "quiet", "cloudy")
_TIMES = ("morning", "evening", "night", "afternoon", "Sunday", "Monday", "spring day", "autumn day")
_FEELINGS = ("glad", "tired", "worried", "proud", "hungry", "curious", "calm", "afraid")

_OPENINGS = (
    "One {weather} {time}, {name} the {role} walked to the {place}.",
    "It was a {weather} {time} when {name} came to the {place}.",
    "{name} was a {role} who lived near the {place}.",
    "There was once a {role} named {name}, and {he} worked by the {place}.",
    "On a {weather} {time} the {place} was almost empty, but {name} was there.",
)
_WISHES = (
    "{He} wanted to find {his} {thing} before dark.",
    "{He} had lost {his} {thing} and felt {feeling}.",
    "{He} hoped to sell the {thing} for a few coins.",
    "All day {he} had carried a {thing} for {friend}.",
    "{He} was {feeling}, because {friend} had asked for the {thing}.",
    "{name} had promised {friend} a {thing} many weeks ago.",
)
_TROUBLES = (
    "But the road to the {other} was closed, and nobody knew why.",
    "Then the wind took the {thing} and dropped it behind the {other}.",
    "Soon it began to rain, so {he} waited under a tree and counted the drops.",
    "A stranger at the {other} said that the {thing} was already gone.",
    "Halfway there, {name} fell and hurt {his} foot.",
    "The {thing} was much heavier than it looked.",
)
_HELPS = (
    "{friend} heard about it and came with a lamp and some bread.",
    '"Do not worry," said {friend}. "We will look for the {thing} together."',
    "Just then {friend} came around the corner, and {fhe} laughed.",
    '"Is this your {thing}?" asked {friend}. {name} looked up and smiled.',
    "{friend} knew the {other} well, and {fhe} showed {him} a shorter way.",
    "Together they searched the {place} and then the {other}.",
)
_ENDINGS = (
    "In the end the {thing} was safe, and {name} went home {feeling}.",
    "They sat by the {other} until the stars came out.",
    "{name} thanked {friend} and gave {fhim} the {thing}.",
    "From that day on, {name} and {friend} met at the {place} every week.",
    "At last {he} slept well, with the {thing} beside {his} bed.",
    "Nobody in the village ever forgot the {thing} of {name} the {role}.",
)
_ASIDES = (
    "The birds over the {other} were loud.",
    "It smelled of smoke and apples.",
    "Somewhere a bell rang {number} times.",
    "{number} boats lay in a row.",
    "An old dog slept by the door.",
    "The clock on the wall showed {number}.",
)
_NUMBERS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def make_prose(rng: Random) -> Problem:
    """One story of two paragraphs."""
    (name, he, him, his), (friend, fhe, fhim, _) = rng.sample(PEOPLE, 2)
    place, other = rng.sample(PLACES, 2)
    names = {
        "name": name, "he": he, "He": he.capitalize(), "him": him, "his": his,
        "friend": friend, "fhe": fhe, "fhim": fhim, "place": place, "other": other,
        "role": rng.choice(_ROLES), "thing": rng.choice(_THINGS),
    }  # fmt: skip

    def line(template: str) -> str:
        text = template.format(
            weather=rng.choice(_WEATHER), time=rng.choice(_TIMES), feeling=rng.choice(_FEELINGS),
            number=rng.choice(_NUMBERS), **names,
        )  # fmt: skip
        return text[0].upper() + text[1:]

    troubles, helps, asides = (rng.sample(templates, 2) for templates in (_TROUBLES, _HELPS, _ASIDES))
    first = [rng.choice(_OPENINGS), rng.choice(_WISHES), asides[0], *troubles[: rng.randint(1, 2)]]
    second = [*helps[: rng.randint(1, 2)], asides[1], rng.choice(_ENDINGS)]
    for paragraph, aside in ((first, asides[0]), (second, asides[1])):
        if rng.random() < 0.3:
            paragraph.remove(aside)
    story = "\n\n".join(" ".join(line(template) for template in paragraph) for paragraph in (first, second))
    return Problem(task="prose", key=f"prose:{story}", prompt="", target=story)


def _nothing_to_check(_problem: Problem, _response: str) -> dict[str, bool]:
    raise ValueError("prose is judged by perplexity, it has no checker")


PROSE = Task("prose", make_prose, _nothing_to_check, max_new_tokens=250)
