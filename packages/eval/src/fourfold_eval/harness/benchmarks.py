"""``gsm8k``, ``ifeval``, and any other task of the harness by its name."""

from __future__ import annotations

import importlib.metadata
import tempfile
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from fourfold.interfaces.benchmark import Answer, BenchmarkJob, Prompt, PromptBenchmark, Scores
from fourfold_eval.harness.data import GSM8K, IFEVAL, LocalData, describe_files, write_task_file
from fourfold_eval.harness.model import Recorder, prompt_of
from fourfold_eval.harness.punkt import offer_local_copy, require_punkt
from fourfold_eval.harness.run import collect, evaluate, require_known
from fourfold_eval.harness.scores import scores_of
from fourfold_eval.options import HarnessOptions, HarnessTaskOptions

OptionsT = TypeVar("OptionsT", bound=HarnessOptions)

LANGDETECT_SEED = 0
_RECORDED = ("datasets", "fourfold-eval", "immutabledict", "langdetect", "lm_eval", "nltk", "numpy", "sacrebleu")


class _HarnessBenchmark(PromptBenchmark[OptionsT]):
    """A task of the harness. Subclasses say which, and where its data may lie."""

    #: What the harness calls a metric -> (our name, label); a metric not named here keeps its name.
    names: ClassVar[dict[str, tuple[str, str]]] = {}
    local: ClassVar[LocalData | None] = None
    label: str
    task: str

    def prompts(self, job: BenchmarkJob) -> Sequence[Prompt]:
        """The requests the harness would send."""
        with self._opened(job) as (task, manager, _):
            recorder = collect(task, manager, self.options, job.limit)
        self._check(recorder)
        return [prompt_of(name, instance) for name, instance in recorder.instances]

    def score(self, job: BenchmarkJob, answers: Sequence[Answer]) -> Scores:
        """The harness's metrics of these answers."""
        with self._opened(job) as (task, manager, files):
            results = evaluate(task, manager, self.options, job.limit, {a.prompt: a.text for a in answers})
        versions = {name: importlib.metadata.version(name) for name in _RECORDED}
        details = {"label": self.label, "data": describe_files(files) or "hub"}
        return scores_of(results, self.names, self.label, details, versions)

    @abstractmethod
    def _opened(self, job: BenchmarkJob) -> AbstractContextManager[tuple[str, Any, dict[str, Path]]]:
        """(the task's name or file, a task manager that knows it, its local data files)."""

    def _check(self, recorder: Recorder) -> None:
        """Refuse what could not be scored later."""


class _OwnTask(_HarnessBenchmark[HarnessOptions]):
    """A task we name: only its own folder of the harness is read, and local data stand in for the hub's."""

    @contextmanager
    def _opened(self, job: BenchmarkJob) -> Iterator[tuple[str, Any, dict[str, Path]]]:
        offer_local_copy(job.data)
        import lm_eval.tasks
        from lm_eval.tasks import TaskManager

        folder = Path(lm_eval.tasks.__file__).parent / self.task
        if job.data is None or self.local is None:
            yield self.task, TaskManager(include_defaults=False, include_path=str(folder)), {}
            return
        files = self.local.find(job.data)
        with tempfile.TemporaryDirectory(prefix="fourfold-task-") as temporary:
            path = write_task_file(folder / f"{self.task}.yaml", self.task, files, Path(temporary))
            yield str(path), TaskManager(include_defaults=False), files


class Gsm8k(_OwnTask):
    """GSM8K, five examples as turns unless told otherwise."""

    task, label, local = "gsm8k", "GSM8K", GSM8K
    names: ClassVar = {
        "exact_match,flexible-extract": ("flexible-extract", "GSM8K (flexible-extract)"),
        "exact_match,strict-match": ("strict-match", "GSM8K (strict-match)"),
    }


class IfEval(_OwnTask):
    """IFEval, no examples."""

    task, label, local = "ifeval", "IFEval", IFEVAL
    names: ClassVar = {
        f"{level}_level_{mode}_acc": (f"{level}-{mode}", f"IFEval {level}-{mode}")
        for mode in ("strict", "loose")
        for level in ("prompt", "inst")
    }

    def score(self, job: BenchmarkJob, answers: Sequence[Answer]) -> Scores:
        """The harness's metrics; its guesses of a language are drawn at random, here with a seed."""
        import langdetect

        # Its documented switch. Unseeded, the same answers score otherwise from run to run.
        langdetect.DetectorFactory.seed = LANGDETECT_SEED
        scores = super().score(job, answers)
        return scores.model_copy(update={"details": {**scores.details, "langdetect_seed": LANGDETECT_SEED}})

    def _check(self, recorder: Recorder) -> None:
        require_punkt([instance.doc for _, instance in recorder.instances])


class AnyTask(_HarnessBenchmark[HarnessTaskOptions]):
    """Any generative task, and task files (``*.yaml``) below ``--data``."""

    def __init__(self, options: HarnessTaskOptions) -> None:
        super().__init__(options)
        self.task = self.label = options.task

    @contextmanager
    def _opened(self, job: BenchmarkJob) -> Iterator[tuple[str, Any, dict[str, Path]]]:
        offer_local_copy(job.data)
        from lm_eval.tasks import TaskManager

        own = job.data if job.data is not None and any(job.data.glob("*.yaml")) else None
        manager = TaskManager(include_path=str(own) if own else None)
        require_known(self.task, manager)
        yield self.task, manager, {}
