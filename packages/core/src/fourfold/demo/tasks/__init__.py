"""The demo model's tasks, by name: seeded generators with their checkers."""

from __future__ import annotations

from fourfold.demo.tasks.arithmetic import MATH
from fourfold.demo.tasks.instruct import INSTRUCT
from fourfold.demo.tasks.problem import SPLITS, Frames, Problem, Split, Task, split_of
from fourfold.demo.tasks.prose import PROSE
from fourfold.demo.tasks.vision import CLIP, VISION

TASKS: dict[str, Task] = {task.name: task for task in (MATH, INSTRUCT, VISION, CLIP, PROSE)}


def get_task(name: str) -> Task:
    """The task of this name.

    Raises:
        ValueError: no task has this name; the message lists the known ones.
    """
    if name not in TASKS:
        raise ValueError(f"unknown demo task {name!r}; known: {', '.join(TASKS)}")
    return TASKS[name]


__all__ = ["SPLITS", "TASKS", "Frames", "Problem", "Split", "Task", "get_task", "split_of"]
