"""Options of the benchmarks; read by the command line, so nothing heavy is imported here."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from fourfold.config import Options
from fourfold.interfaces.benchmark import TaskOptions


class HarnessOptions(Options):
    """How lm-evaluation-harness asks; None leaves a thing as the task has it.

    ``max_tokens`` replaces the task's limit of generated tokens (the harness's own default is 256, which cuts long
    derivations), ``num_fewshot`` its number of examples; these come as turns of a conversation unless
    ``fewshot_as_multiturn`` is false.
    """

    num_fewshot: NonNegativeInt | None = None
    fewshot_as_multiturn: bool = True
    system_instruction: str | None = None
    max_tokens: PositiveInt | None = None
    temperature: NonNegativeFloat | None = None
    top_p: float | None = Field(default=None, gt=0, le=1)


class HarnessTaskOptions(HarnessOptions, TaskOptions):
    """The same for any task, by its name in the harness."""


class DemoOptions(Options):
    """A demo task: the held-out problems drawn with ``problem_seed``."""

    problem_seed: int = 0


class DivergenceOptions(Options):
    """Where the prompts come from, and how much of each distribution is compared.

    ``prompts`` is a demo task, ``gsm8k`` (questions of gsm8k_test.jsonl in --data) or ``file`` (prompts.jsonl in
    --data, a ``messages`` list a line). The baseline answers them greedily with at most ``max_tokens`` tokens; the
    divergence is measured over those answers. ``top_k`` logprobs of each position are asked for; 0 asks for the whole
    vocabulary, for which vLLM must be started with ``--max-logprobs -1``.
    """

    prompts: Literal["demo-math", "demo-instruct", "gsm8k", "file"] = "demo-math"
    max_prompts: PositiveInt = 200
    max_tokens: PositiveInt = 128
    top_k: NonNegativeInt = 20


class SpeedOptions(Options):
    """One stream unless ``streams`` says more; every load is measured ``measurements`` times with other prompts."""

    input_tokens: PositiveInt = 32
    output_tokens: PositiveInt = 1000
    streams: PositiveInt = 1
    measurements: int = Field(default=3, ge=3)
