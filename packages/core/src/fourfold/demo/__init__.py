"""The demo model: a small trained Gemma 4 mixture-of-experts with the tasks it was trained on.

``model_path()`` is a folder that ``AutoProcessor`` and ``AutoModelForImageTextToText`` load without a network;
``held_out(task)`` are problems it was never trained on, with their checker in ``get_task(task)``. Importing this
package imports neither torch nor transformers.
"""

from __future__ import annotations

from pathlib import Path

from fourfold.demo.check import DemoModelError, check_model_folder
from fourfold.demo.tasks import TASKS, Problem, get_task

#: The model's name wherever a model folder or hub id is taken.
MODEL_NAME = "demo"
MODEL_PATH = Path(__file__).parent / "model"
#: Size of a held-out set, and the seed it is drawn with.
HELD_OUT_COUNT = 1000
HELD_OUT_SEED = 0


def model_path() -> Path:
    """The folder of the trained weights."""
    return MODEL_PATH


def held_out(task: str, count: int = HELD_OUT_COUNT) -> list[Problem]:
    """The first ``count`` problems of a task's held-out set.

    Raises:
        ValueError: unknown task, or more problems than exist.
    """
    return get_task(task).generate("test", count, HELD_OUT_SEED)


__all__ = [
    "HELD_OUT_COUNT",
    "HELD_OUT_SEED",
    "MODEL_NAME",
    "MODEL_PATH",
    "TASKS",
    "DemoModelError",
    "Problem",
    "check_model_folder",
    "get_task",
    "held_out",
    "model_path",
]
