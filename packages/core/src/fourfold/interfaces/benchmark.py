"""The role *benchmark*: prompts with what a response is worth, or a measurement of a served model or its files.

A whole minimal plugin::

    from fourfold.hookspecs import hookimpl
    from fourfold.interfaces.benchmark import Metric, Prompt, PromptBenchmark, Sampling, Scores
    from fourfold.plugins import Entry
    from fourfold.results import PromptMetric

    class SaysHello(PromptBenchmark):
        def prompts(self, job):
            messages = ({"role": "user", "content": "Say hello."},)
            return [Prompt(id="hello", messages=messages, sampling=Sampling(max_tokens=16))]

        def score(self, job, answers):
            return Scores(
                metrics=(Metric(name="hello", label="says hello"),),
                prompts={a.prompt: {"hello": PromptMetric(total="hello" in a.text.lower())} for a in answers},
            )

    @hookimpl
    def fourfold_register_benchmarks():
        return [Entry(name="says-hello", summary="one prompt", implementation="my_plugin:SaysHello")]

Asking is the runner's part: concurrently, resumably, with every response kept. ``prompts`` and ``score`` may run in
different processes, and in the entry's own environment where it has one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pydantic import Field, FiniteFloat, PositiveInt

from fourfold.config import Config, Options
from fourfold.results import PROPORTION, Direction, MetricResult, PromptMetric

if TYPE_CHECKING:
    from fourfold.interfaces.server import Endpoint, Server
    from fourfold.progress import Progress

OptionsT = TypeVar("OptionsT", bound=Options)


class TaskOptions(Options):
    """Options of a benchmark that knows many tasks by name: ``NAME:TASK`` selects one of them, and so does TASK
    alone where nobody registered it.
    """

    task: str


class Sampling(Config):
    """How a response is drawn; greedy by default. ``extra`` goes into the request as it is."""

    max_tokens: PositiveInt
    temperature: FiniteFloat = Field(default=0.0, ge=0)
    top_p: FiniteFloat | None = None
    stop: tuple[str, ...] = ()
    extra: dict[str, Any] = Field(default_factory=dict)


class Prompt(Config):
    """One question: ``messages`` as the chat endpoint takes them, images and videos as data URLs."""

    id: str
    messages: tuple[dict[str, Any], ...]
    sampling: Sampling


class Answer(Config):
    """One response, by its prompt's id."""

    prompt: str
    text: str
    finish_reason: str | None = None


class Metric(Config):
    """What a benchmark measures. A proportion is better the higher it is, unless said otherwise."""

    name: str
    label: str
    direction: Direction = Direction.HIGHER
    unit: str = PROPORTION


class Scores(Config):
    """What the answers are worth.

    A metric's score is the sum over ``prompts`` of its totals over the sum of its counts. ``aggregates`` holds the
    score as the benchmark's own toolchain computes it; where the two differ the toolchain's is reported, and the metric
    has no value a prompt. ``details`` and ``packages`` go into the record.
    """

    metrics: tuple[Metric, ...]
    prompts: dict[str, dict[str, PromptMetric]]
    aggregates: dict[str, FiniteFloat] = Field(default_factory=dict)
    details: dict[str, Any] = Field(default_factory=dict)
    packages: dict[str, str] = Field(default_factory=dict)


class BenchmarkJob(Config):
    """What a benchmark is asked for: the first ``limit`` prompts (None: all), from files in ``data`` or the hub."""

    limit: PositiveInt | None = None
    data: Path | None = None
    seed: int = 0


class Benchmark(ABC, Generic[OptionsT]):
    """What both kinds share: the options it was selected with."""

    def __init__(self, options: OptionsT) -> None:
        self.options = options


class PromptBenchmark(Benchmark[OptionsT]):
    """Prompts, and what a response to each is worth. Equal jobs give equal prompts in the same order."""

    @abstractmethod
    def prompts(self, job: BenchmarkJob) -> Sequence[Prompt]:
        """Every prompt, ids distinct; :class:`fourfold.errors.EvaluationError` names a data file and its line."""

    @abstractmethod
    def score(self, job: BenchmarkJob, answers: Sequence[Answer]) -> Scores:
        """Score one answer to each of the prompts, in their order."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """What is measured: an ``endpoint``, a ``checkpoint`` folder, or both; whichever there is.

    ``server`` is the one that owns the endpoint, else this machine's, for what only a server can measure; None where
    none is installed.
    """

    name: str
    endpoint: Endpoint | None
    checkpoint: Path | None
    server: Server[Any] | None


@dataclass(frozen=True, kw_only=True)
class MeasurementJob:
    """Where a measurement works: ``folder`` is its own and kept, ``reference`` the baseline's for the same task.

    ``reference`` is None while the baseline itself is measured. What lies in ``folder`` from an interrupted run of the
    same model may be used again.
    """

    target: Target
    folder: Path
    reference: Path | None
    limit: int | None
    data: Path | None
    seed: int
    concurrency: int
    timeout_s: float


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a measurement found; ``prompts_sha256`` covers what was asked, for comparison with the baseline's."""

    metrics: tuple[MetricResult, ...]
    prompts: int
    prompts_sha256: str
    details: Mapping[str, Any]


class Measurement(Benchmark[OptionsT]):
    """Measures in its own way, in the process of the runner: divergence, speed, size."""

    def check(self, job: BenchmarkJob) -> None:
        """Refuse, before there is any model, what will not do for any: data that are not there. Fetches nothing.

        :class:`fourfold.errors.EvaluationError` names the file.
        """

    def needs_endpoint(self, job: MeasurementJob) -> bool:
        """Whether the model must be served for ``job``, whose target has no endpoint yet: not for what is there.

        What makes the job impossible is said here, before anything is served.
        """
        return True

    @abstractmethod
    def measure(self, job: MeasurementJob, progress: Progress) -> Measured:
        """Measure one model."""
