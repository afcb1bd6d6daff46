"""From the cells still to run to jobs, each after those it needs, with what it takes of a machine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from fourfold.plan import QuantizePlan
from fourfold.stages.request import num_threads
from fourfold.study.cells import Cell
from fourfold.study.evaluation import baseline_config, cell_config
from fourfold.study.jobs import BASE_MEMORY_BYTES, Job, JobKind, Needs
from fourfold.study.plan import StudyPlan
from fourfold.study.spec import BASELINE

Overrides = Mapping[str, Mapping[str, float]]


class Schedule:
    """Collects jobs: one token set, one quantize stage a group of cells, one job a cell, one an evaluation.

    ``identity`` gives a cell's hash, ``overrides`` change single needs by kind (:func:`parse_needs`).
    """

    def __init__(
        self,
        plan: StudyPlan,
        output: Path,
        source_files: Mapping[str, str],
        identity: Callable[[Cell], str],
        overrides: Overrides,
    ) -> None:
        self._plan, self._output, self._identity = plan, output, identity
        self._source_files, self._overrides = dict(source_files), overrides
        self._jobs: dict[str, Job] = {}
        self._quantize: dict[str, str] = {}

    @property
    def jobs(self) -> tuple[Job, ...]:
        """In an order that respects ``after``."""
        return tuple(self._jobs.values())

    def run_cells(self, cells: Iterable[Cell]) -> None:
        """Quantize, export and verify ``cells``."""
        for cell in cells:
            after = (self._tokens(cell),) if self._plan.plans[cell.name].needs_tokens else ()
            self._add(cell, _cell_job(cell), JobKind.CELL, (self._quantized(cell, after),))

    def evaluate(self, cells: Iterable[Cell], *, baseline: bool) -> None:
        """Evaluate ``cells``, after they have run where they still must; before them the unquantized model."""
        first = f"{JobKind.EVALUATE} {BASELINE}"
        study = self._plan.study
        if baseline:
            config = baseline_config(study, self._plan.model_path, self._output)
            self._add(self._plan.cells[0], first, JobKind.EVALUATE, (), {"cell": BASELINE, "evaluation": config})
        for cell in cells:
            after = tuple(name for name in (first, _cell_job(cell)) if name in self._jobs)
            config = cell_config(study, cell.name, self._output)
            self._add(cell, f"{JobKind.EVALUATE} {cell.name}", JobKind.EVALUATE, after, {"evaluation": config})

    def _tokens(self, cell: Cell) -> str:
        name = str(JobKind.TOKENS)
        if name not in self._jobs:
            self._add(cell, name, JobKind.TOKENS, ())
        return name

    def _quantized(self, cell: Cell, after: tuple[str, ...]) -> str:
        name = self._quantize.setdefault(cell.stage_key, f"{JobKind.QUANTIZE} {cell.name}")
        if name not in self._jobs:
            self._add(cell, name, JobKind.QUANTIZE, after)
        return name

    def _add(
        self, cell: Cell, name: str, kind: JobKind, after: tuple[str, ...], more: Mapping[str, object] | None = None
    ) -> None:
        what = {
            "name": name,
            "kind": kind,
            "after": after,
            "needs": self._needs(kind, self._plan.plans[cell.name]),
            "cell": cell.name,
            "identity": self._identity(cell),
            "config": cell.config,
            "output": str(self._output.absolute()),
            "source_files": self._source_files,
            "threads": num_threads(),
            "compare": self._plan.study.compare,
        }
        self._jobs[name] = Job.model_validate(what | dict(more or {}))

    def _needs(self, kind: JobKind, plan: QuantizePlan) -> Needs:
        """Quantizing and serving hold the whole model in memory, on a GPU where the study names one.

        On a CPU a quantize stage has the threads that there are here wherever it runs, as they decide last bits.
        """
        needs = Needs()
        if kind in (JobKind.QUANTIZE, JobKind.EVALUATE):
            on_cpu = plan.config.device == "cpu"
            cpus = num_threads() if on_cpu and kind is JobKind.QUANTIZE else 1
            needs = Needs(cpus=cpus, gpus=0 if on_cpu else 1, memory_bytes=BASE_MEMORY_BYTES + plan.bytes_before)
        return needs.model_copy(update=dict(self._overrides.get(str(kind), {})))


def _cell_job(cell: Cell) -> str:
    """Of two words, as every job but the token set's: a cell may be called ``tokens``."""
    return f"{JobKind.CELL} {cell.name}"
