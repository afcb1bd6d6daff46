"""The role *benchmark*: scores of a served model, one record a prompt.

A whole minimal plugin::

    from fourfold.hookspecs import hookimpl
    from fourfold.interfaces.benchmark import Benchmark, PromptScore
    from fourfold.plugins import Entry

    class SaysHello(Benchmark):
        def prompts(self):
            return ["Say hello."]

        def score(self, index, response):
            return PromptScore(prompt=str(index), scores={"hello": float("hello" in response.lower())})

    @hookimpl
    def fourfold_register_benchmarks():
        return [Entry(name="says-hello", summary="one prompt", implementation="my_plugin:SaysHello")]
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Generic, TypeVar

from pydantic import FiniteFloat

from fourfold.config import Config, Options

OptionsT = TypeVar("OptionsT", bound=Options)


class PromptScore(Config):
    """What one response scored, by metric; a score is a finite number, larger is better."""

    prompt: str
    scores: dict[str, FiniteFloat]


class Benchmark(ABC, Generic[OptionsT]):
    """Prompts, and what a response to each is worth; asking the endpoint is the runner's part."""

    def __init__(self, options: OptionsT) -> None:
        self.options = options

    @abstractmethod
    def prompts(self) -> Sequence[str]:
        """The user turns, in a fixed order."""

    @abstractmethod
    def score(self, index: int, response: str) -> PromptScore:
        """Score the response to prompt ``index``."""
