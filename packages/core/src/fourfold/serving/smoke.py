"""Does a served model answer: text, a picture and a clip, each as one reply and as a stream.

The questions are held-out ones of the demo tasks, drawn here, so nothing is fetched. They have one right answer each
(a number, "red circle", "red circle left"), which a whole Gemma 4 knows as well as the demo model: a server that
answers fluently about pictures it never saw fails.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Literal

import httpx

from fourfold.config import Config
from fourfold.demo.chat import chat_messages
from fourfold.demo.tasks import Problem, get_task
from fourfold.errors import UnknownNameError
from fourfold.evaluate.client import client_options
from fourfold.interfaces.server import Endpoint
from fourfold.progress import Progress

Modality = Literal["text", "image", "video"]
#: The demo task that asks in each modality.
TASK_OF: dict[Modality, str] = {"text": "math", "image": "vision", "video": "clip"}
_SLACK_TOKENS = 64
_TIMEOUT_S = 300.0


def parse_modalities(names: Iterable[str] | None) -> tuple[Modality, ...]:
    """The named ones, all for None; :class:`fourfold.errors.UnknownNameError` lists the known ones."""
    known: dict[str, Modality] = {name: name for name in TASK_OF}
    for name in names or ():
        if name not in known:
            raise UnknownNameError("modality", name, tuple(known))
    return tuple(known[name] for name in names or known)


class SmokeCheck(Config):
    """One modality, streamed or not. ``error`` is what went wrong first; a check without one has passed."""

    modality: Modality
    streamed: bool
    asked: int
    correct: int
    example: str
    error: str | None

    @property
    def ok(self) -> bool:
        """Whether every answer came and most were right."""
        return self.error is None


class SmokeReport(Config):
    """What ``fourfold smoke --json`` prints."""

    ok: bool
    model: str
    checks: tuple[SmokeCheck, ...]


def smoke(
    endpoint: Endpoint, progress: Progress, *, modalities: Iterable[Modality] = tuple(TASK_OF), count: int = 4
) -> SmokeReport:
    """Ask ``count`` problems in each modality, streamed and not; a failing one keeps no other from being asked."""
    chosen = tuple(modalities)
    progress.begin("smoke test", total=2 * count * len(chosen), unit="question")
    checks = tuple(
        _check(endpoint, modality, streamed, count, progress) for modality in chosen for streamed in (False, True)
    )
    return SmokeReport(ok=all(check.ok for check in checks), model=endpoint.model, checks=checks)


def _check(endpoint: Endpoint, modality: Modality, streamed: bool, count: int, progress: Progress) -> SmokeCheck:
    task = get_task(TASK_OF[modality])
    correct, example, error = 0, "", None
    for problem in task.generate("test", count):
        try:
            answer = ask(endpoint, problem, streamed=streamed, max_tokens=task.max_new_tokens + _SLACK_TOKENS)
        except (httpx.HTTPError, _BadAnswerError) as failure:
            error = str(failure) or type(failure).__name__
            break
        example = example or answer.strip()
        correct += task.is_correct(problem, answer)
        progress.advance(1)
    if error is None and 2 * correct <= count:
        error = f"only {correct} of {count} answers are right"
    return SmokeCheck(
        modality=modality, streamed=streamed, asked=count, correct=correct, example=example[:200], error=error
    )


class _BadAnswerError(Exception):
    """An answer that is not what an OpenAI chat endpoint gives."""


def ask(endpoint: Endpoint, problem: Problem, *, streamed: bool, max_tokens: int) -> str:
    """The greedy answer to one problem, put together from its pieces when it is streamed."""
    payload: dict[str, Any] = {
        "model": endpoint.model,
        "messages": chat_messages(problem),
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": streamed,
    }
    with httpx.Client(**client_options(endpoint.url, _TIMEOUT_S)) as client:
        request = client.build_request("POST", f"{endpoint.url}/chat/completions", json=payload)
        response = client.send(request, stream=streamed)
        try:
            if response.is_error:
                detail = " ".join(response.read().decode(errors="replace").split())[:200]
                raise _BadAnswerError(f"status {response.status_code}: {detail}")
            text = _streamed_text(response) if streamed else _whole_text(response)
        finally:
            response.close()
    if not text.strip():
        raise _BadAnswerError("an empty answer")
    return text


def _whole_text(response: httpx.Response) -> str:
    try:
        return response.json()["choices"][0]["message"]["content"] or ""
    except (ValueError, KeyError, IndexError, TypeError):
        raise _BadAnswerError("no chat completion") from None


def _streamed_text(response: httpx.Response) -> str:
    """Server-sent events: ``data:`` lines of JSON, the last of them ``[DONE]``."""
    pieces: list[str] = []
    for line in response.iter_lines():
        if not line.startswith("data:"):
            continue
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            if len(pieces) < 2:
                raise _BadAnswerError("the stream came in one piece")
            return "".join(pieces)
        try:
            choices = json.loads(data)["choices"]
            piece = choices[0]["delta"].get("content") if choices else None
        except (ValueError, KeyError, IndexError, TypeError):
            raise _BadAnswerError(f"a broken event: {data[:80]}") from None
        if piece:
            pieces.append(piece)
    raise _BadAnswerError("the stream ended without [DONE]")
