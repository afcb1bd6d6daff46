"""demo-instruct: a small topic and one to three verifiable instructions that the answer must satisfy.

The key is the topic with its constraints: a held-out combination is never trained on in another wording.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from random import Random

from fourfold.demo.tasks.constraints import Constraint, draw_constraints, num_words
from fourfold.demo.tasks.problem import Problem, Task
from fourfold.demo.tasks.words import pick_system

#: topic: (nouns), (adjectives), (what they do)
TOPICS: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "the sea": (("sea", "wave", "ship", "shore"), ("blue", "deep", "wild"), ("rolls slowly", "shines at noon")),
    "the forest": (("forest", "tree", "fox", "path"), ("green", "dark", "quiet"), ("rests in the shade", "grows tall")),
    "winter": (("winter", "snow", "wind", "fire"), ("cold", "white", "long"), ("comes every year", "covers the hills")),
    "summer": (
        ("summer", "sun", "field", "evening"),
        ("warm", "bright", "golden"),
        ("lasts for weeks", "smells of hay"),
    ),
    "bread": (("bread", "baker", "oven", "crust"), ("fresh", "warm", "brown"), ("feeds the family", "fills the room")),
    "music": (("music", "song", "drum", "choir"), ("loud", "soft", "sweet"), ("fills the hall", "moves the people")),
    "cats": (("cat", "kitten", "paw", "tail"), ("small", "soft", "proud"), ("sleeps all day", "hunts at night")),
    "dogs": (("dog", "puppy", "nose", "bark"), ("loyal", "happy", "brave"), ("guards the house", "runs in the yard")),
    "rain": (("rain", "cloud", "drop", "roof"), ("grey", "heavy", "gentle"), ("falls on the town", "wakes the plants")),
    "mountains": (
        ("mountain", "peak", "rock", "goat"),
        ("high", "steep", "old"),
        ("touches the sky", "guards the valley"),
    ),
    "trains": (
        ("train", "station", "wheel", "driver"),
        ("fast", "long", "red"),
        ("leaves on time", "crosses the bridge"),
    ),
    "books": (
        ("book", "page", "story", "shelf"),
        ("old", "thick", "clever"),
        ("opens new worlds", "waits for readers"),
    ),
    "the moon": (("moon", "night", "star", "sky"), ("pale", "silver", "round"), ("lights the road", "rises late")),
    "a garden": (("garden", "rose", "bee", "gate"), ("green", "lovely", "small"), ("grows in spring", "needs water")),
    "the city": (("city", "street", "tower", "crowd"), ("busy", "noisy", "tall"), ("never sleeps", "shines at night")),
    "a farm": (("farm", "cow", "barn", "farmer"), ("wide", "muddy", "calm"), ("works from dawn", "feeds the village")),
    "the desert": (
        ("desert", "sand", "camel", "dune"),
        ("dry", "hot", "empty"),
        ("stretches far away", "hides old secrets"),
    ),
    "birds": (
        ("bird", "nest", "wing", "owl"),
        ("light", "quick", "free"),
        ("sings in the morning", "flies to the south"),
    ),
    "school": (
        ("school", "teacher", "class", "lesson"),
        ("new", "bright", "strict"),
        ("starts at eight", "teaches the children"),
    ),
    "tea": (("tea", "cup", "leaf", "pot"), ("hot", "strong", "green"), ("calms the guests", "cools on the table")),
}

_OPENERS = ("Write about {topic}.", "Tell me about {topic}.", "Describe {topic}.", "Say something about {topic}.")
_SENTENCES = (
    "The {a} {n} {v}.",
    "Every {n} is {a}, {b} and {c}.",
    "In the morning, the {n} {v}.",
    "People love the {a} {n}.",
    "The {n} {v}, and the {m} is {a}.",
    "I like the {n} because it is {a}.",
    "There is a {a} {n} near the {m}.",
    "Look at the {n}, it is very {b}.",
    "A {n} can be {a} or {b}.",
)
_PLAIN_SENTENCES = tuple(sentence for sentence in _SENTENCES if "," not in sentence)
_KEYWORD_SENTENCES = (
    "The {n} has a {k}.",
    "There is a {k} beside the {n}.",
    "I remember the {k} and the {a} {n}.",
    "Somebody left a {k} near the {n}.",
)
_TITLES = ("{A} {N}", "The {N}", "About the {N}", "A {A} {N}")
_MAX_DRAWS = 40

_ARTICLE = re.compile(r"\b([Aa])(?= [aeiouAEIOU])")


def _with_articles(text: str) -> str:
    """``a`` before a vowel becomes ``an``."""
    return _ARTICLE.sub(r"\1n", text)


@dataclass(frozen=True)
class _Writer:
    """Draws sentences about one topic."""

    rng: Random
    topic: str
    commas: bool

    def sentence(self, keyword: str = "") -> str:
        nouns, adjectives, doings = TOPICS[self.topic]
        n, m = self.rng.sample(nouns, 2)
        a, b, c = self.rng.sample(adjectives, 3)
        if keyword:
            return _with_articles(self.rng.choice(_KEYWORD_SENTENCES).format(n=n, a=a, k=keyword))
        template = self.rng.choice(_SENTENCES if self.commas else _PLAIN_SENTENCES)
        return _with_articles(template.format(n=n, m=m, a=a, b=b, c=c, v=self.rng.choice(doings)))

    def title(self) -> str:
        nouns, adjectives, _ = TOPICS[self.topic]
        n, a = self.rng.choice(nouns), self.rng.choice(adjectives)
        return f"<<{_with_articles(self.rng.choice(_TITLES).format(N=n.capitalize(), A=a.capitalize()))}>>"


def _num_sentences(rng: Random, asked: dict[str, Constraint]) -> int:
    for kind in ("bullets", "sentences"):
        if kind in asked:
            return asked[kind].count
    if "min_words" in asked:
        return max(2, asked["min_words"].count // 6 + rng.randint(0, 2))
    if "max_words" in asked:
        return max(1, asked["max_words"].count // 10)
    return rng.randint(2, 3)


def _compose(rng: Random, topic: str, asked: dict[str, Constraint]) -> str:
    """A response meant to satisfy the constraints; the word limits are left to the verifier."""
    writer = _Writer(rng, topic, commas="no_comma" not in asked)
    keywords = [asked["keyword"].text] if "keyword" in asked else []
    keywords += [asked["twice"].text] * 2 if "twice" in asked else []
    count = max(_num_sentences(rng, asked), 1)
    sentences = [writer.sentence(keyword) for keyword in keywords[:count]]
    sentences += [writer.sentence() for _ in range(count - len(sentences))]
    rng.shuffle(sentences)
    if len(keywords) > count:
        sentences[-1] = _with_articles(f"The {keywords[0]} is a {keywords[0]}.")
    text = "\n".join(f"* {sentence}" for sentence in sentences) if "bullets" in asked else " ".join(sentences)
    if "title" in asked:
        text = f"{writer.title()}\n{text}"
    if "end" in asked:
        text = f"{text} {asked['end'].text}"
    if "upper" in asked:
        text = text.upper()
    if "lower" in asked:
        text = text.lower()
    return f'"{text}"' if "quote" in asked else text


def _draw_satisfied(rng: Random) -> tuple[str, tuple[Constraint, ...], str]:
    """A topic, constraints and a response that satisfies them; constraints that find none soon are drawn again."""
    while True:
        topic = rng.choice(list(TOPICS))
        constraints = draw_constraints(rng)
        asked = {constraint.kind: constraint for constraint in constraints}
        for _ in range(_MAX_DRAWS):
            target = _compose(rng, topic, asked)
            if all(constraint.holds(target) for constraint in constraints):
                return topic, constraints, target


def make_instruct(rng: Random) -> Problem:
    """One prompt with a reference response that satisfies every constraint."""
    topic, constraints, target = _draw_satisfied(rng)
    prompt = " ".join([rng.choice(_OPENERS).format(topic=topic), *(c.ask(rng) for c in constraints)])
    return Problem(
        task="instruct",
        key=f"instruct:{topic}:{sorted((c.kind, c.text, c.count) for c in constraints)}",
        prompt=prompt,
        target=target,
        answer="; ".join(constraint.kind for constraint in constraints),
        system=pick_system(rng),
        metadata={"topic": topic, "constraints": constraints, "num_words": num_words(target)},
    )


def check_instruct(problem: Problem, response: str) -> dict[str, bool]:
    """Each constraint by its kind; prompt-strict means all of them."""
    return {constraint.kind: constraint.holds(response) for constraint in problem.metadata["constraints"]}


INSTRUCT = Task("instruct", make_instruct, check_instruct, max_new_tokens=200)
