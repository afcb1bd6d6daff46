"""What an evaluation is asked for, as data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, PositiveFloat, PositiveInt

from fourfold.config import Config


class EvalConfig(Config):
    """What ``fourfold eval`` is asked for. ``options`` are keyed ``TASK.KEY``; ``limits`` are single tasks' own, in
    place of ``limit``.
    """

    model: str
    tasks: tuple[str, ...]
    output: Path
    options: dict[str, Any] = Field(default_factory=dict)
    baseline: str | None = None
    limit: PositiveInt | None = None
    limits: dict[str, PositiveInt] = Field(default_factory=dict)
    repeats: PositiveInt = 1
    concurrency: PositiveInt = 16
    data: Path | None = None
    seed: int = 1234
    server: str | None = None
    server_options: dict[str, Any] = Field(default_factory=dict)
    served_model: str | None = None
    timeout_s: PositiveFloat = 1800.0

    def limit_of(self, task: str) -> int | None:
        """How many prompts of ``task``; None for all."""
        return self.limits.get(task, self.limit)
