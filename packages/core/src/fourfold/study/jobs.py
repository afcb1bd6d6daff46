"""A study's work as jobs: the token set, quantize stages, cells, evaluations; each a message that any process can run.

A job reads and writes the study's folder only, finished stages by the hash of what decided them, so it may run here or
on another machine that has the folder, and again after its machine was lost.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

from fourfold.config import Config
from fourfold.errors import ConfigError
from fourfold.evaluate.request import EvalConfig
from fourfold.pipeline import StageTime
from fourfold.plan import QuantizeConfig
from fourfold.results import EvalRecord
from fourfold.study.results import CellResult

#: Host memory of a job beside what its model takes: the interpreter, torch, a shard being written.
BASE_MEMORY_BYTES = 2 * 1024**3


class JobKind(StrEnum):
    """What a job makes."""

    TOKENS = "tokens"
    QUANTIZE = "quantize"
    CELL = "cell"
    EVALUATE = "evaluate"


class Needs(Config):
    """What a job takes of a machine while it runs. ``memory_bytes`` is host memory."""

    cpus: float = 1
    gpus: float = 0
    memory_bytes: int = BASE_MEMORY_BYTES


class Job(Config):
    """One piece of a study. ``after`` are the jobs whose output it reads; ``cell`` is the one whose config decides it.
    ``evaluation`` is an evaluation's request, None for jobs of other kinds.

    ``output`` is the study's folder, absolute; ``source_files`` the digests of the model's files, by name; ``threads``
    a stage's, decided where the study was started: a cluster's workers have one each, and other bits would come of it.
    """

    name: str
    kind: JobKind
    after: tuple[str, ...] = ()
    needs: Needs = Needs()
    cell: str
    identity: str
    config: QuantizeConfig
    output: str
    source_files: dict[str, str]
    threads: int
    compare: bool
    evaluation: EvalConfig | None = None


class Outcome(Config):
    """How a job ended: ``error`` when it failed, else a cell's ``result``, or an evaluation's ``record`` and
    ``identity``: the hash of what was asked where the job ran.
    """

    job: str
    stages: tuple[StageTime, ...] = ()
    result: CellResult | None = None
    record: EvalRecord | None = None
    identity: str | None = None
    error_type: str | None = None
    error: str | None = None

    @property
    def ok(self) -> bool:
        """Whether it ended well."""
        return self.error_type is None


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
