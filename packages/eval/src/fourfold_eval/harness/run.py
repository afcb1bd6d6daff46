"""The harness's own evaluation, run up to its requests or from their answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from fourfold.errors import EvaluationError, UnreachableDataError
from fourfold.evaluate.tasks import unknown_task
from fourfold_eval.harness.model import Collected, Recorder
from fourfold_eval.options import HarnessOptions


def collect(task: str, manager: Any, options: HarnessOptions, limit: int | None) -> Recorder:
    """A recorder that holds every request of ``task``."""
    recorder = Recorder()
    try:
        _simple_evaluate(recorder, task, manager, options, limit)
    except Collected:
        return recorder
    raise EvaluationError(f"task {task!r} generates nothing, so there is nothing to ask")


def evaluate(
    task: str, manager: Any, options: HarnessOptions, limit: int | None, answers: Mapping[str, str]
) -> dict[str, Any]:
    """The harness's results, with a sample a document and filter."""
    return _simple_evaluate(Recorder(answers), task, manager, options, limit)


def _simple_evaluate(
    recorder: Recorder, task: str, manager: Any, options: HarnessOptions, limit: int | None
) -> dict[str, Any]:
    from lm_eval import simple_evaluate

    settings = {
        key: value
        for key, value in (
            ("max_gen_toks", options.max_tokens),
            ("temperature", options.temperature),
            ("top_p", options.top_p),
        )
        if value is not None
    }
    if options.temperature:
        settings["do_sample"] = True
    with _explained(task):
        results: dict[str, Any] = simple_evaluate(
            model=recorder,
            tasks=[task],
            num_fewshot=options.num_fewshot,
            limit=limit,
            bootstrap_iters=0,
            log_samples=True,
            system_instruction=options.system_instruction,
            apply_chat_template=True,
            fewshot_as_multiturn=options.fewshot_as_multiturn,
            gen_kwargs=settings or None,
            task_manager=manager,
        )
        return results


@contextmanager
def _explained(task: str) -> Iterator[None]:
    """The harness's refusals and an unreachable hub as errors of ours; anything else is a fault and stays one."""
    try:
        yield
    except ValueError as error:
        if "unsafe" in str(error) or "multimodal" in str(error):
            raise EvaluationError(f"task {task!r}: {' '.join(str(error).split())[:300]}") from None
        raise
    except OSError as error:
        detail = " ".join(str(error).split())[:200]
        raise UnreachableDataError(
            f"task {task!r}: its data could not be fetched ({type(error).__name__}: {detail}); "
            "give local files by --data where the task takes them"
        ) from None


def require_known(task: str, manager: Any) -> None:
    """:class:`EvaluationError` with near names where the harness does not know ``task``."""
    from fourfold_eval.hooks import fourfold_register_benchmarks

    if task not in manager.all_tasks:
        own = [entry.name for entry in fourfold_register_benchmarks()]
        raise unknown_task(task, own, others=manager.all_tasks)
