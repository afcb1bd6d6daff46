"""demo-math: chained arithmetic word problems, worked out step by step, ending in ``#### answer`` as GSM8K does.

Two to six steps on one running number (add, take away, multiply or share evenly by a single digit, all below 1,000),
told as a story in which every second problem also mentions a number that does not matter. The key is the chain of
numbers and operations: a held-out chain is never trained on under other names.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from random import Random

from fourfold.demo.tasks.problem import Problem, Task
from fourfold.demo.tasks.words import COUNTABLES, PEOPLE, PLACES, pick_system

MIN_STEPS, MAX_STEPS = 2, 6
LARGEST = 999
_FACTORS = tuple(range(2, 10))
_DISTRACTOR_RATE = 0.5

_FINAL_ANSWER = re.compile(r"####\s*(-?[\d,]*\d)\s*\Z")

_SYMBOLS = {"add": "+", "take": "-", "times": "*", "share": "/"}
_APPLY: dict[str, Callable[[int, int], int]] = {
    "add": lambda value, n: value + n,
    "take": lambda value, n: value - n,
    "times": lambda value, n: value * n,
    "share": lambda value, n: value // n,
}
_STORIES = {
    "add": (
        "{name} buys {n} more {items}.",
        "{friend} gives {him} {n} {items}.",
        "{He} finds {n} more at the {place}.",
        "Then {n} new {items} arrive.",
        "{name} wins {n} {items} in a game.",
    ),
    "take": (
        "{name} gives {n} {items} to {friend}.",
        "{He} loses {n} of them at the {place}.",
        "{He} sells {n} {items}.",
        "{n} of the {items} break.",
        "{friend} takes {n} {items} away.",
    ),
    "times": (
        "Then the number of {items} grows to {n} times as many.",
        "By luck {name} gets {n} times as many {items}.",
        "A trade at the {place} leaves {him} with {n} times as many.",
    ),
    "share": (
        "{name} shares them evenly among {n} people and keeps one share.",
        "{He} puts the {items} into {n} equal bags and keeps one bag.",
        "They are split into {n} equal parts and {name} keeps one part.",
    ),
}
_STARTS = (
    "{name} has {n} {items}.",
    "{name} starts the day with {n} {items}.",
    "There are {n} {items} in {name}'s bag.",
    "At the {place} {name} collects {n} {items}.",
)
_DISTRACTORS = (
    "{friend} has {n} {others}.",
    "The {place} is {n} steps away.",
    "{name} is {n} years old.",
    "There are {n} trees near the {place}.",
)
_QUESTIONS = (
    "How many {items} does {name} have now?",
    "How many {items} are left with {name}?",
    "Find the number of {items} {name} has at the end.",
)


def _draw_step(rng: Random, value: int) -> tuple[str, int]:
    """An operation and its operand that keep the running number between 1 and LARGEST."""
    while True:
        operation = rng.choices(("add", "take", "times", "share"), weights=(35, 35, 15, 15))[0]
        largest_term = rng.choice((99, 99, 299))
        factors = [n for n in _FACTORS if value * n <= LARGEST]
        divisors = [n for n in _FACTORS if value % n == 0 and value > n]
        if operation == "add" and value + 2 <= LARGEST:
            return operation, rng.randint(2, min(largest_term, LARGEST - value))
        if operation == "take" and value > 3:
            return operation, rng.randint(2, min(largest_term, value - 1))
        if operation == "times" and factors:
            return operation, rng.choice(factors)
        if operation == "share" and divisors:
            return operation, rng.choice(divisors)


def draw_chain(rng: Random) -> tuple[int, list[tuple[str, int]]]:
    """A starting number and two to six steps."""
    value = start = rng.randint(3, 99)
    steps: list[tuple[str, int]] = []
    for _ in range(rng.randint(MIN_STEPS, MAX_STEPS)):
        operation, n = _draw_step(rng, value)
        value = _APPLY[operation](value, n)
        steps.append((operation, n))
    return start, steps


def _tell(rng: Random, start: int, steps: list[tuple[str, int]]) -> str:
    """The word problem."""
    (name, he, him, _), (friend, *_) = rng.sample(PEOPLE, 2)
    items, others = rng.sample(COUNTABLES, 2)
    names = {
        "name": name, "he": he, "He": he.capitalize(), "him": him,
        "friend": friend, "items": items, "others": others, "place": rng.choice(PLACES),
    }  # fmt: skip
    sentences = [rng.choice(_STARTS).format(n=start, **names)]
    sentences += [rng.choice(_STORIES[operation]).format(n=n, **names) for operation, n in steps]
    if rng.random() < _DISTRACTOR_RATE:
        distractor = rng.choice(_DISTRACTORS).format(n=rng.randint(3, 99), **names)
        sentences.insert(rng.randint(1, len(sentences)), distractor)
    sentences.append(rng.choice(_QUESTIONS).format(**names))
    return " ".join(sentences)


def _work_out(start: int, steps: list[tuple[str, int]]) -> tuple[str, int]:
    """The reference response, one equation a line, and the final number."""
    lines, value = [], start
    for operation, n in steps:
        result = _APPLY[operation](value, n)
        lines.append(f"{value} {_SYMBOLS[operation]} {n} = {result}")
        value = result
    return "\n".join([*lines, f"#### {value}"]), value


def make_arithmetic(rng: Random) -> Problem:
    """One word problem."""
    start, steps = draw_chain(rng)
    target, value = _work_out(start, steps)
    return Problem(
        task="math",
        key=f"math:{start}" + "".join(f"{_SYMBOLS[operation]}{n}" for operation, n in steps),
        prompt=_tell(rng, start, steps),
        target=target,
        answer=str(value),
        system=pick_system(rng),
        metadata={"num_steps": len(steps)},
    )


def extract_answer(response: str) -> str | None:
    """The number after the last ``####`` when it closes the response, without thousands commas."""
    match = _FINAL_ANSWER.search(response.rstrip())
    return match[1].replace(",", "") if match else None


def check_arithmetic(problem: Problem, response: str) -> dict[str, bool]:
    """Exact match of the final number."""
    return {"answer": extract_answer(response) == problem.answer}


MATH = Task("math", make_arithmetic, check_arithmetic, max_new_tokens=120)
