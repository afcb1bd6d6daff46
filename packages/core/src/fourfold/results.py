"""What an evaluation measured: the versioned contract between those who measure and those who report.

On disk, below the folder of one evaluation::

    eval.json              an EvalRecord: everything but the responses
    responses/TASK.jsonl   one ResponseRecord a line, a prompt and a repeat each, in the order of the prompts
    baseline/              the same again for the baseline, where it was evaluated in the same run

A score is a finite number or None, never NaN. What needs two prompts (an interval, a standard error) is None below
two, beside the count. A proportion is between 0 and 1; percent is the reader's business.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field, FiniteFloat, NonNegativeInt, PositiveInt

from fourfold.checkpoint.index import read_json
from fourfold.config import Config
from fourfold.errors import CheckpointError, EvaluationError

EVAL_FILE = "eval.json"
RESPONSES_FOLDER = "responses"
BASELINE_FOLDER = "baseline"
SCHEMA_VERSION: Final = 1
#: The unit of a share of right answers.
PROPORTION: Final = "proportion"


class Direction(StrEnum):
    """Which way a metric gets better."""

    HIGHER = "higher is better"
    LOWER = "lower is better"


class Interval(Config):
    """A 95 % interval and how it was made; ``seed`` and ``resamples`` where it was drawn."""

    low: FiniteFloat
    high: FiniteFloat
    level: float = 0.95
    method: Literal["wilson", "bonett-price", "bootstrap", "paired-bootstrap"]
    seed: int | None = None
    resamples: int | None = None


class MetricResult(Config):
    """One number of one task.

    ``n`` counts what the score is a mean of: prompts, or tokens for a divergence; ``prompts`` are the independent
    ones among them. ``unit`` is ``proportion`` for a quality score, else ``nats``, ``bytes``, ``tokens/s``, ``ms`` or
    the benchmark's own. ``per_prompt`` tells whether each prompt has a value of it in the responses file; without,
    nothing can be paired. ``repeats`` are the scores of each repeat by itself.
    """

    name: str
    label: str
    direction: Direction
    unit: str
    n: NonNegativeInt
    prompts: NonNegativeInt
    score: FiniteFloat | None
    interval: Interval | None = None
    standard_error: FiniteFloat | None = None
    per_prompt: bool = True
    repeats: tuple[FiniteFloat | None, ...] = ()


class TaskResult(Config):
    """One task of one model.

    ``task`` is the name as asked for; ``file`` the stem of its responses file, None for a task that asks nothing.
    ``prompts_sha256`` covers every prompt's id, messages and sampling: equal hashes, same questions. ``sampling`` holds
    the parameters all prompts share. ``seeds`` are one a repeat. ``unfinished`` counts answers cut off by their token
    limit. ``details`` holds what the benchmark adds: its version, data files and their sha256, settings.
    """

    task: str
    label: str
    benchmark: str
    options: dict[str, Any] = Field(default_factory=dict)
    file: str | None = None
    prompts: NonNegativeInt
    scored: NonNegativeInt
    unscored: NonNegativeInt = 0
    unfinished: NonNegativeInt = 0
    prompts_sha256: str
    sampling: dict[str, Any] = Field(default_factory=dict)
    seeds: tuple[int, ...] = ()
    metrics: tuple[MetricResult, ...]
    prompt_tokens: NonNegativeInt | None = None
    completion_tokens: NonNegativeInt | None = None
    seconds: float
    packages: dict[str, str] = Field(default_factory=dict)
    details: dict[str, Any] = Field(default_factory=dict)

    def metric(self, name: str) -> MetricResult:
        """The metric of that name; KeyError where the task has none."""
        return {metric.name: metric for metric in self.metrics}[name]


class Verdict(StrEnum):
    """What a comparison comes to."""

    WORSE = "worse"
    BETTER = "better"
    INSIDE_NOISE = "inside the noise floor"
    NOT_SHOWN = "no difference shown"
    UNTESTED = "not tested"


class PairedTest(Config):
    """A two-sided test on the same prompts.

    ``mcnemar-exact`` counts prompts that only one of the two got right; ``paired-permutation`` flips signs of the
    differences, all of them where few, else ``resamples`` drawn with ``seed``.
    """

    name: Literal["mcnemar-exact", "paired-permutation"]
    p_value: float = Field(ge=0, le=1)
    only_baseline: int | None = None
    only_candidate: int | None = None
    seed: int | None = None
    resamples: int | None = None


class NoiseFloor(Config):
    """How far two means of as many runs may lie apart with nothing between them but the runs: 1.96 standard deviations
    of the baseline's own ``scores``, one a run, times sqrt(1/its runs + 1/the candidate's).
    """

    value: FiniteFloat = Field(ge=0)
    scores: tuple[FiniteFloat, ...] = Field(min_length=2)


class Comparison(Config):
    """One metric of the candidate against the baseline's, prompt by prompt.

    ``difference`` is score - baseline_score. ``retained`` is score / baseline_score of a share of right answers (1.0
    is all of it), ``ratio`` the same quotient for any metric; both None where the baseline scored 0. ``words`` is the
    verdict as a sentence.
    """

    task: str
    metric: str
    label: str
    direction: Direction
    unit: str
    prompts: NonNegativeInt
    baseline_score: FiniteFloat
    score: FiniteFloat
    difference: FiniteFloat
    difference_interval: Interval | None = None
    ratio: FiniteFloat | None = None
    retained: FiniteFloat | None = None
    retained_interval: Interval | None = None
    test: PairedTest | None = None
    noise_floor: NoiseFloor | None = None
    verdict: Verdict
    words: str

    @property
    def is_quality(self) -> bool:
        """A share of right answers, of which some is retained; a share of wrong ones that trebles has retained none."""
        return self.unit == PROPORTION and self.direction is Direction.HIGHER


class ModelRecord(Config):
    """What answered.

    ``source`` is what the user gave. ``manifest_sha256`` is the sha256 of a local checkpoint's manifest.json where it
    has one, ``config_sha256`` of its config.json; both None for an endpoint whose files are out of sight.
    ``scheme`` is the manifest's (W4A4, W4A16, or both), ``BF16`` for a local folder without quantization, else None.
    """

    name: str
    source: str
    kind: Literal["checkpoint", "endpoint"]
    url: str | None = None
    served_model: str | None = None
    server: str | None = None
    server_version: str | None = None
    server_options: dict[str, Any] = Field(default_factory=dict)
    manifest_sha256: str | None = None
    config_sha256: str | None = None
    scheme: str | None = None
    size_bytes: int | None = None


class Machine(Config):
    """Where the asking, and the serving where owned, was done. No host name, no paths."""

    system: str
    processor: str
    num_cores: int
    memory_bytes: int
    gpus: tuple[str, ...] = ()


class EvalRecord(Config):
    """``eval.json``: one model, its tasks, and what they come to beside the baseline's.

    ``limit`` is how many prompts of a task were asked for, None for all; ``limits`` are single tasks' own, in place of
    it.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    model: ModelRecord
    machine: Machine
    packages: dict[str, str]
    git_revision: str | None = None
    started: str
    seconds: float
    concurrency: PositiveInt
    limit: int | None = None
    limits: dict[str, PositiveInt] = Field(default_factory=dict)
    repeats: PositiveInt = 1
    seed: int
    tasks: tuple[TaskResult, ...]
    baseline: ModelRecord | None = None
    comparisons: tuple[Comparison, ...] = ()

    def task(self, name: str) -> TaskResult | None:
        """The task of that name, or None."""
        return next((found for found in self.tasks if found.task == name), None)

    @property
    def cut(self) -> tuple[TaskResult, ...]:
        """The tasks whose limit was reached; a benchmark with no more prompts than its limit was asked whole."""
        limits = {task.task: self.limits.get(task.task, self.limit) for task in self.tasks}
        return tuple(task for task in self.tasks if (limit := limits[task.task]) is not None and task.prompts >= limit)

    @classmethod
    def load(cls, folder: Path) -> EvalRecord:
        """Read ``folder``/eval.json; :class:`EvaluationError` names the file and what is wrong with it."""
        path = folder / EVAL_FILE
        if not path.is_file():
            raise EvaluationError(f"{folder}: no {EVAL_FILE} there; it is written by fourfold eval --output")
        try:
            data = read_json(path)
        except CheckpointError as error:
            raise EvaluationError(str(error)) from None
        version = data.get("schema_version") if isinstance(data, dict) else None
        if version != SCHEMA_VERSION:
            raise EvaluationError(f"{path}: schema version {version!r}; this Fourfold reads {SCHEMA_VERSION}")
        return cls.parse(data, where=str(path))


class Usage(Config):
    """Tokens as the endpoint counted them."""

    prompt_tokens: NonNegativeInt | None = None
    completion_tokens: NonNegativeInt | None = None


class PromptMetric(Config):
    """What one response adds to a metric: the task's score is the sum of totals over the sum of counts."""

    total: FiniteFloat
    count: PositiveInt = 1


class ResponseRecord(Config):
    """One line of ``responses/TASK.jsonl``. ``scores`` is empty until the task has been scored."""

    prompt: str
    prompt_sha256: str
    repeat: NonNegativeInt = 0
    text: str
    finish_reason: str | None = None
    usage: Usage = Usage()
    seconds: float
    scores: dict[str, PromptMetric] = Field(default_factory=dict)
