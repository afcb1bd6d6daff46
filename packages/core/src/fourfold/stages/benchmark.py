"""The benchmark stage, in whatever environment it was started in: a task's prompts, or the scores of its answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from fourfold.config import Config
from fourfold.errors import PluginError
from fourfold.interfaces.benchmark import Answer, BenchmarkJob, Prompt, PromptBenchmark, Scores
from fourfold.plugins import Registry, Role
from fourfold.progress import Progress


class BenchmarkRequest(Config):
    """One half of a prompt benchmark: without ``answers`` its prompts are written to ``output``, else its scores."""

    stage: Literal["benchmark"] = "benchmark"
    name: str
    options: dict[str, Any]
    job: BenchmarkJob
    answers: Path | None
    output: Path


class PromptList(Config):
    """What the first half writes."""

    prompts: tuple[Prompt, ...]


class AnswerList(Config):
    """What the second half reads."""

    answers: tuple[Answer, ...]


def run_benchmark(request: BenchmarkRequest, registry: Registry, progress: Progress) -> None:
    """Write ``request.output``, one JSON document."""
    benchmark = load_prompt_benchmark(registry, request.name, request.options)
    result: PromptList | Scores
    if request.answers is None:
        progress.begin(f"prompts of {request.name}", total=None, unit="task")
        result = PromptList(prompts=tuple(benchmark.prompts(request.job)))
    else:
        progress.begin(f"score {request.name}", total=None, unit="task")
        answers = AnswerList.model_validate_json(request.answers.read_bytes())
        result = benchmark.score(request.job, answers.answers)
    request.output.write_text(result.model_dump_json(), encoding="utf-8")


def load_prompt_benchmark(registry: Registry, name: str, options: dict[str, Any]) -> PromptBenchmark[Any]:
    """The benchmark, made with its parsed options; :class:`PluginError` where it asks no prompts."""
    entry = registry.get(Role.BENCHMARK, name)
    made = registry.load(Role.BENCHMARK, name)(entry.options.parse(options, where=name))
    if not isinstance(made, PromptBenchmark):
        raise PluginError(f"benchmark {name!r} has an environment of its own but is no PromptBenchmark")
    return made
