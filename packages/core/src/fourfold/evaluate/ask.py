"""The chat endpoint's part: prompts as requests, replies as answers on disk."""

from __future__ import annotations

from typing import Any

from fourfold.errors import EvaluationError
from fourfold.evaluate.answers import AnswerFile
from fourfold.evaluate.client import Reply, Request, ask
from fourfold.interfaces.benchmark import Prompt
from fourfold.interfaces.server import Endpoint
from fourfold.progress import Progress
from fourfold.results import Usage


def answer_missing(
    answers: AnswerFile,
    endpoint: Endpoint,
    *,
    label: str,
    seed: int,
    concurrency: int,
    timeout_s: float,
    progress: Progress,
) -> None:
    """Ask what is missing; each answer is on disk before the next is taken. Repeat r is asked with ``seed`` + r."""
    missing = answers.missing
    progress.begin(label, total=len(missing), unit="prompt")
    requests = [
        Request((prompt.id, repeat), "chat/completions", chat_payload(prompt, endpoint.model, seed + repeat))
        for prompt, repeat in missing
    ]

    def receive(reply: Reply) -> None:
        text, finish_reason, usage = read_chat(reply, endpoint.url)
        answers.append(reply.key, text, finish_reason, usage, reply.seconds)
        progress.advance(1)

    try:
        ask(endpoint.url, requests, receive, concurrency=concurrency, timeout_s=timeout_s)
    finally:
        answers.close()


def chat_payload(prompt: Prompt, model: str, seed: int) -> dict[str, Any]:
    """The request of one prompt."""
    sampling = prompt.sampling
    payload: dict[str, Any] = {
        "model": model,
        "messages": list(prompt.messages),
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "seed": seed,
    }
    if sampling.top_p is not None:
        payload["top_p"] = sampling.top_p
    if sampling.stop:
        payload["stop"] = list(sampling.stop)
    return payload | sampling.extra


def read_chat(reply: Reply, url: str) -> tuple[str, str | None, Usage]:
    """(text, finish reason, usage) of a chat completion; an absent content is an empty answer."""
    try:
        choice = reply.body["choices"][0]
        text = choice["message"]["content"] or ""
        usage = reply.body.get("usage") or {}
        counted = Usage(prompt_tokens=usage.get("prompt_tokens"), completion_tokens=usage.get("completion_tokens"))
        return str(text), choice.get("finish_reason"), counted
    except (KeyError, IndexError, TypeError, AttributeError):
        raise EvaluationError(f"{url}: the answer to {reply.key} is no chat completion") from None
