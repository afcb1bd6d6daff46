"""The harness's model that asks nobody: it takes down what would be asked, or gives the answers that came back.

``simple_evaluate`` runs twice: up to the requests, and again from the answers to the scores. Prompts, few-shot
examples, filters and metrics are the harness's own, and so the scores are those of its command line on the same
responses.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from fourfold.errors import EvaluationError
from fourfold.interfaces.benchmark import Prompt, Sampling

#: What the harness's chat model generates at most where a task says nothing.
DEFAULT_MAX_TOKENS = 256
#: As its chat model does, for servers that take no more.
MAX_STOPS = 4


class Collected(BaseException):
    """Ends the first run: the requests are taken down. No error, so no handler of errors may stop it."""


class Recorder(LM):
    """Takes requests down while ``answers`` is None, else answers them by id."""

    def __init__(self, answers: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self._answers = answers
        self.instances: list[tuple[str, Instance]] = []

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """The harness's one call with every request of every task, repeats included."""
        self.instances = _named(requests)
        if self._answers is None:
            raise Collected
        return [self._answers[name] for name, _ in self.instances]

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Refused: a chat endpoint gives no log-likelihood of a text that it did not write."""
        raise EvaluationError(
            f"task {requests[0].task_name!r} ranks given answers by log-likelihood, which a chat endpoint cannot tell; "
            "choose the task's generative variant"
        )

    def loglikelihood_rolling(self, requests: Sequence[Instance]) -> list[float]:
        """Refused, for the same reason."""
        raise EvaluationError(
            f"task {requests[0].task_name!r} is a perplexity of raw text, which a chat endpoint cannot tell and an "
            "instruct model is not judged by; see task kl"
        )

    def apply_chat_template(self, chat_history: list[dict[str, Any]], add_generation_prompt: bool = True) -> str:
        """The conversation itself: the template is the server's part."""
        return json.dumps(chat_history, ensure_ascii=False)

    @property
    def tokenizer_name(self) -> str:
        """For the harness's cache of requests, which is not used."""
        return ""

    def chat_template(self, chat_template: bool | str = False) -> str:
        """Not known here: the server has it."""
        return ""


def _named(requests: Sequence[Instance]) -> list[tuple[str, Instance]]:
    """Each request by task, document, and its number within both."""
    seen: Counter[str] = Counter()
    named = []
    for instance in requests:
        name = f"{instance.task_name}/{instance.doc_id:05d}"
        number = seen[name]
        seen[name] += 1
        named.append((f"{name}/{number}" if number else name, instance))
    return named


def prompt_of(name: str, instance: Instance) -> Prompt:
    """One request in our terms, its settings read as the harness's own chat model reads them."""
    context, settings = instance.args
    given = dict(settings)
    given.pop("do_sample", None)
    limit = given.pop("max_gen_toks", DEFAULT_MAX_TOKENS)
    stop = given.pop("until", None) or []
    return Prompt(
        id=name,
        messages=tuple(json.loads(context)),
        sampling=Sampling(
            max_tokens=given.pop("max_tokens", limit),
            temperature=given.pop("temperature", 0.0),
            top_p=given.pop("top_p", None),
            stop=tuple([stop] if isinstance(stop, str) else stop)[:MAX_STOPS],
            extra=given,
        ),
    )
