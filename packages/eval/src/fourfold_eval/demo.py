"""``demo-math``, ``demo-instruct``, ``demo-vision``, ``demo-clip``: the demo model's held-out problems, asked by chat.

Pictures go as PNG data URLs. A clip goes as vLLM takes frames already chosen: a ``video/jpeg`` data URL, frames one
after the other, at the quality where a flat 96 x 96 scene loses nothing that matters.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from fourfold.demo import HELD_OUT_COUNT, Problem, get_task
from fourfold.errors import EvaluationError
from fourfold.interfaces.benchmark import Answer, BenchmarkJob, Metric, Prompt, PromptBenchmark, Sampling, Scores
from fourfold.results import PromptMetric
from fourfold_eval.options import DemoOptions

if TYPE_CHECKING:
    from fourfold.demo.tasks import Frames

_JPEG_QUALITY = 95


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


def chat_messages(problem: Problem) -> list[dict[str, Any]]:
    """The problem's messages with its picture or clip as a data URL."""
    messages = []
    for message in problem.messages:
        parts = [_part(part, problem) for part in message["content"]]
        messages.append({"role": message["role"], "content": parts})
    return messages


def _part(part: dict[str, Any], problem: Problem) -> dict[str, Any]:
    match part["type"]:
        case "image":
            return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{_png(problem.frames())}"}}
        case "video":
            return {"type": "video_url", "video_url": {"url": f"data:video/jpeg;base64,{_jpegs(problem.frames())}"}}
        case _:
            return part


def _png(frames: Frames) -> str:
    return _encoded(frames[0], "PNG")


def _jpegs(frames: Frames) -> str:
    return ",".join(_encoded(frame, "JPEG", quality=_JPEG_QUALITY, subsampling=0) for frame in frames)


def _encoded(frame: Any, kind: str, **options: Any) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, format=kind, **options)
    return base64.b64encode(buffer.getvalue()).decode()
