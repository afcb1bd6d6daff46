"""``demo-math``, ``demo-instruct``, ``demo-vision``, ``demo-clip``: the demo's held-out problems, asked by chat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from fourfold.demo import HELD_OUT_COUNT, Problem, get_task
from fourfold.demo.chat import chat_messages
from fourfold.errors import EvaluationError
from fourfold.interfaces.benchmark import Answer, BenchmarkJob, Metric, Prompt, PromptBenchmark, Sampling, Scores
from fourfold.results import PromptMetric
from fourfold_eval.options import DemoOptions


class _DemoTask(PromptBenchmark[DemoOptions]):
    """One task; a problem's id is its place in the held-out set."""

    task: ClassVar[str]

    def prompts(self, job: BenchmarkJob) -> Sequence[Prompt]:
        """The first ``limit`` held-out problems, 1,000 unless said otherwise."""
        sampling = Sampling(max_tokens=get_task(self.task).max_new_tokens)
        return [
            Prompt(id=f"{index:05d}", messages=tuple(chat_messages(problem)), sampling=sampling)
            for index, problem in enumerate(self._problems(job))
        ]

    def score(self, job: BenchmarkJob, answers: Sequence[Answer]) -> Scores:
        """Right when every part is; the parts stand beside it."""
        problems = self._problems(job)
        if len(problems) != len(answers):
            raise EvaluationError(f"demo-{self.task}: {len(answers)} answers to {len(problems)} problems")
        scores: dict[str, dict[str, PromptMetric]] = {}
        parts: set[str] = set()
        for problem, answer in zip(problems, answers, strict=True):
            verdict = get_task(self.task).check(problem, answer.text)
            parts.update(verdict)
            scores[answer.prompt] = {"correct": PromptMetric(total=all(verdict.values()))} | {
                f"part-{part}": PromptMetric(total=holds) for part, holds in verdict.items()
            }
        shown = sorted(parts) if len(parts) > 1 else []
        label = f"demo-{self.task}"
        return Scores(
            metrics=(
                Metric(name="correct", label=label),
                *(Metric(name=f"part-{part}", label=f"{label} {part.replace('_', ' ')}") for part in shown),
            ),
            prompts=scores,
            details={"label": label, "split": "test", "problem_seed": self.options.problem_seed},
        )

    def _problems(self, job: BenchmarkJob) -> list[Problem]:
        try:
            return get_task(self.task).generate("test", job.limit or HELD_OUT_COUNT, self.options.problem_seed)
        except ValueError as error:
            raise EvaluationError(f"--limit: {error}") from None


class DemoMath(_DemoTask):
    """Arithmetic in words."""

    task = "math"


class DemoInstruct(_DemoTask):
    """Verifiable instructions."""

    task = "instruct"


class DemoVision(_DemoTask):
    """Pictures."""

    task = "vision"


class DemoClip(_DemoTask):
    """Clips."""

    task = "clip"
