"""What a demo task produces, and how training and held-out problems are kept apart.

Every problem has a ``key``: the canonical text of what makes it this problem and no other (for arithmetic the chain
of numbers and operations, not the names around it). SHA-256 of the key decides the split, so a held-out problem can
never be generated for training, whatever the seed: the splits are disjoint by construction.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
Medium = Literal["text", "image", "video"]

#: Buckets of the key's hash: of 20, two are held out for testing and one for the curve during training.
_BUCKETS = 20
_TEST_BUCKETS = (0, 1)
_VALIDATION_BUCKET = 2

#: A sampled split stops with an error when this many candidates in a row bring nothing new.
_MAX_CANDIDATES = 10_000

Frames = npt.NDArray[np.uint8]


def split_of(key: str) -> Split:
    """The only split in which a problem with this key may appear."""
    bucket = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % _BUCKETS
    if bucket in _TEST_BUCKETS:
        return "test"
    return "validation" if bucket == _VALIDATION_BUCKET else "train"


@dataclass(frozen=True)
class Problem:
    """One question with a reference response.

    ``answer`` is what is compared (a number, "red circle"); ``target`` is the whole reference response.
    ``render`` draws the frames, uint8 [N, height, width, 3], of a picture (N = 1) or a clip; None for text.
    ``metadata`` holds what the task's checker needs. A problem of plain prose has no prompt: its text is ``target``.
    """

    task: str
    key: str
    prompt: str
    target: str
    answer: str = ""
    system: str = ""
    medium: Medium = "text"
    metadata: Mapping[str, Any] = field(default_factory=dict)
    render: Callable[[], Frames] | None = field(default=None, compare=False, repr=False)

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The prompt in chat form, as processors and servers take it, without the reference response."""
        turns: list[dict[str, Any]] = []
        if self.system:
            turns.append({"role": "system", "content": [{"type": "text", "text": self.system}]})
        parts: list[dict[str, Any]] = [] if self.medium == "text" else [{"type": self.medium}]
        turns.append({"role": "user", "content": [*parts, {"type": "text", "text": self.prompt}]})
        return turns

    def frames(self) -> Frames:
        """Draw the picture or clip.

        Raises:
            ValueError: the problem is text only.
        """
        if self.render is None:
            raise ValueError(f"{self.task}: a text problem has no frames")
        return self.render()


@dataclass(frozen=True)
class Task:
    """A seeded generator with its checker.

    ``make`` draws one problem; ``check`` returns the verdict on each part of a response by name, and a response is
    correct when every part is. ``max_new_tokens`` bounds a reference response.
    """

    name: str
    make: Callable[[Random], Problem]
    check: Callable[[Problem, str], dict[str, bool]]
    max_new_tokens: int

    def stream(self, split: Split, seed: int) -> Iterator[Problem]:
        """Endless problems of one split; the same arguments give the same problems, repeats included."""
        if split not in SPLITS:
            raise ValueError(f"{self.name}: unknown split {split!r}; known: {', '.join(SPLITS)}")
        rng = Random(f"{self.name}/{split}/{seed}")
        while True:
            problem = self.make(rng)
            if split_of(problem.key) == split:
                yield problem

    def generate(self, split: Split, count: int, seed: int = 0) -> list[Problem]:
        """The first ``count`` distinct problems of ``stream(split, seed)``.

        Raises:
            ValueError: ``count`` is negative, or the task has too few distinct problems.
        """
        if count < 0:
            raise ValueError(f"{self.name}: count must be 0 or more, got {count}")
        found: dict[str, Problem] = {}
        repeats = 0
        stream = self.stream(split, seed)
        while len(found) < count:
            problem = next(stream)
            repeats = repeats + 1 if problem.key in found else 0
            if repeats > _MAX_CANDIDATES:
                raise ValueError(f"{self.name}: only {len(found)} distinct {split} problems exist, not {count}")
            found.setdefault(problem.key, problem)
        return list(found.values())

    def is_correct(self, problem: Problem, response: str) -> bool:
        """Whether every part of the response is right."""
        return all(self.check(problem, response).values())
