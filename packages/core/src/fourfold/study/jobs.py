"""A study's work as jobs: the token set, each quantize stage, each cell; every one a message that any process can run.

A job reads and writes the study's folder only, finished stages by the hash of what decided them, so it may run here or
on another machine that has the folder, and again after its machine was lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum

from fourfold.config import Config
from fourfold.errors import ConfigError
from fourfold.pipeline import StageTime
from fourfold.plan import QuantizeConfig, QuantizePlan
from fourfold.study.cells import Cell
from fourfold.study.results import CellResult

#: Host memory of a job beside what its model takes: the interpreter, torch, a shard being written.
_BASE_MEMORY_BYTES = 2 * 1024**3


class JobKind(StrEnum):
    """What a job makes."""

    TOKENS = "tokens"
    QUANTIZE = "quantize"
    CELL = "cell"


class Needs(Config):
    """What a job takes of a machine while it runs. ``memory_bytes`` is host memory."""

    cpus: float = 1
    gpus: float = 0
    memory_bytes: int = _BASE_MEMORY_BYTES


class Job(Config):
    """One piece of a study. ``after`` are the jobs whose output it reads; ``cell`` is the one whose config decides it.

    ``output`` is the study's folder, absolute; ``source_files`` the digests of the model's files, by name.
    """

    name: str
    kind: JobKind
    after: tuple[str, ...] = ()
    needs: Needs
    cell: str
    identity: str
    config: QuantizeConfig
    output: str
    source_files: dict[str, str]
    compare: bool


class Outcome(Config):
    """How a job ended: ``error`` when it failed, ``result`` when it was a cell's and did not."""

    job: str
    stages: tuple[StageTime, ...] = ()
    result: CellResult | None = None
    error_type: str | None = None
    error: str | None = None

    @property
    def ok(self) -> bool:
        """Whether it ended well."""
        return self.error_type is None


def plan_jobs(
    todo: Iterable[Cell],
    plans: Mapping[str, QuantizePlan],
    make: Callable[..., Job],
    overrides: Mapping[str, Mapping[str, float]],
) -> tuple[Job, ...]:
    """The jobs that ``todo`` takes, each after those it needs: one token set, one quantize stage a group of cells.

    ``make`` builds a job of a cell from ``name``, ``kind``, ``after`` and ``needs``. ``overrides`` change single needs,
    by kind.
    """
    jobs: dict[str, Job] = {}
    quantize_jobs: dict[str, str] = {}
    for cell in todo:
        plan = plans[cell.name]
        after: tuple[str, ...] = ()
        if plan.needs_tokens:
            after = (str(JobKind.TOKENS),)
            if after[0] not in jobs:
                jobs[after[0]] = make(cell, name=after[0], kind=JobKind.TOKENS, needs=_needs(JobKind.TOKENS, overrides))
        quantize = quantize_jobs.setdefault(cell.stage_key, f"quantize {cell.name}")
        if quantize not in jobs:
            needs = _needs(JobKind.QUANTIZE, overrides, plan)
            jobs[quantize] = make(cell, name=quantize, kind=JobKind.QUANTIZE, after=after, needs=needs)
        needs = _needs(JobKind.CELL, overrides)
        jobs[cell.name] = make(cell, name=cell.name, kind=JobKind.CELL, after=(quantize,), needs=needs)
    return tuple(jobs.values())


def _needs(kind: JobKind, overrides: Mapping[str, Mapping[str, float]], plan: QuantizePlan | None = None) -> Needs:
    """Defaults: a quantize stage holds the whole model in host memory, and one GPU where the study names one."""
    needs = Needs()
    if plan is not None:
        gpus = 0 if plan.config.device == "cpu" else 1
        needs = Needs(gpus=gpus, memory_bytes=_BASE_MEMORY_BYTES + plan.bytes_before)
    return needs.model_copy(update=dict(overrides.get(str(kind), {})))


def parse_needs(texts: Iterable[str]) -> dict[str, dict[str, float]]:
    """``quantize.gpus=8`` and the like, by kind and what; memory is given in GB as ``memory``.

    Raises :class:`ConfigError` that says what may be given.
    """
    found: dict[str, dict[str, float]] = {}
    for text in texts:
        key, _, number = text.partition("=")
        kind, _, what = key.partition(".")
        try:
            value = float(number)
        except ValueError:
            value = -1
        if kind not in tuple(JobKind) or what not in ("cpus", "gpus", "memory") or not 0 <= value < float("inf"):
            kinds = ", ".join(JobKind)
            raise ConfigError(f"needs: {text!r}: give KIND.WHAT=NUMBER; KIND: {kinds}; WHAT: cpus, gpus, memory (GB)")
        name, amount = ("memory_bytes", int(value * 1e9)) if what == "memory" else (what, value)
        found.setdefault(kind, {})[name] = amount
    return found
