"""The demo's tasks by chat: their pictures arrive as they were drawn, their graders judge what comes back."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from eval.conftest import Run
from eval.endpoint import FakeEndpoint, serving, text_of
from fourfold.demo import held_out
from fourfold.interfaces.benchmark import BenchmarkJob
from fourfold.plugins import Registry, Role
from fourfold_eval.options import DemoOptions

TASKS = ("math", "instruct", "vision", "clip")


def images_of(payload: dict) -> list[np.ndarray]:
    """Frames of a request, decoded as a server does."""
    frames = []
    for part in payload["messages"][-1]["content"]:
        if part["type"] in ("image_url", "video_url"):
            _, _, content = part[part["type"]]["url"].partition(";base64,")
            images = (Image.open(io.BytesIO(base64.b64decode(frame))) for frame in content.split(","))
            frames += [np.asarray(image.convert("RGB")) for image in images]
    return frames


@pytest.mark.parametrize("task", TASKS)
def test_references_score_full_marks_and_nonsense_none(run: Run, registry: Registry, task: str) -> None:
    benchmark = registry.load(Role.BENCHMARK, f"demo-{task}")(DemoOptions())
    prompts = benchmark.prompts(BenchmarkJob(limit=12))
    problems = held_out(task, 12)
    targets = {
        text_of({"messages": list(prompt.messages)}): problem.target
        for prompt, problem in zip(prompts, problems, strict=True)
    }
    with serving(FakeEndpoint(lambda payload: targets[text_of(payload)])) as running:
        good = run(model=running.url, tasks=[f"demo-{task}"], limit=12)
        running.answer = lambda _payload: ""
        bad = run("bad", model=running.url, tasks=[f"demo-{task}"], limit=12)
    assert {metric.score for metric in good.tasks[0].metrics} == {1.0}
    assert bad.tasks[0].metric("correct").score == 0.0


@pytest.mark.parametrize(("task", "tolerance"), [("vision", 0), ("clip", 40)])
def test_pixels_arrive(registry: Registry, task: str, tolerance: int) -> None:
    """A picture to the bit; a clip's frames within what JPEG does to noise, the mean colour within 1."""
    benchmark = registry.load(Role.BENCHMARK, f"demo-{task}")(DemoOptions())
    for prompt, problem in zip(benchmark.prompts(BenchmarkJob(limit=5)), held_out(task, 5), strict=True):
        arrived = np.stack(images_of({"messages": prompt.messages})).astype(int)
        drawn = problem.frames().astype(int)
        assert arrived.shape == drawn.shape
        assert np.abs(arrived - drawn).max() <= tolerance
        assert np.abs(arrived.mean(axis=(1, 2)) - drawn.mean(axis=(1, 2))).max() <= min(1, tolerance)
