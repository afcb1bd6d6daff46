"""Asking an OpenAI endpoint: many requests at once, each tried again while the endpoint may come back.

A refusal (4xx) is final and names the request; a connection that fails, a 429 and a 5xx are tried again with growing
pauses, and end the run when they stay. ``OPENAI_API_KEY`` is sent as the bearer token where it is set.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import httpx

from fourfold.errors import EvaluationError

#: Pauses between the tries of one request.
RETRY_PAUSES_S = (0.5, 1.0, 2.0)
CONNECT_TIMEOUT_S = 10.0
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_MAX_DETAIL = 300


@dataclass(frozen=True)
class Request:
    """One POST: ``key`` names it in messages and to the receiver, ``path`` is below the API's base."""

    key: Any
    path: str
    payload: dict[str, Any]


@dataclass(frozen=True)
class Reply:
    """What came back: the JSON object, and the seconds from sending to its last byte."""

    key: Any
    body: dict[str, Any]
    seconds: float


def is_url(text: str) -> bool:
    """Whether a model was given as an address."""
    return text.startswith(("http://", "https://"))


def api_base(url: str) -> str:
    """The base of the OpenAI API: ``url`` without what follows ``/v1``, which is added where it is missing.

    :class:`EvaluationError` where it is no http address.
    """
    no_address = f"{url}: not an address such as http://127.0.0.1:8888/v1"
    try:
        parts = urlsplit(url)
        # A host or a port that cannot be is told only when it is asked for.
        host, _ = httpx.URL(url).host, parts.port
    except (ValueError, httpx.InvalidURL) as error:
        raise EvaluationError(f"{no_address} ({error})") from None
    if parts.scheme not in ("http", "https") or not host:
        raise EvaluationError(no_address)
    segments = parts.path.rstrip("/").split("/")
    kept = segments[: segments.index("v1")] if "v1" in segments else segments
    return urlunsplit((parts.scheme, parts.netloc, "/".join([*kept, "v1"]), "", ""))


def list_models(base: str) -> tuple[dict[str, Any], ...]:
    """What the endpoint says of each model: ``id``, and from vLLM ``root`` and ``max_model_len`` too.

    :class:`EvaluationError` where nothing answers, or not as an OpenAI endpoint.
    """
    try:
        with _first_client(base) as client:
            response = client.get(f"{base}/models")
            response.raise_for_status()
            return tuple({**model, "id": model["id"]} for model in response.json()["data"])
    except httpx.HTTPStatusError as error:
        raise EvaluationError(f"{base}/models: answered {error.response.status_code}") from None
    except httpx.HTTPError as error:
        raise EvaluationError(f"{base}: nothing answers there ({_reason(error)}); is the server up?") from None
    except (ValueError, KeyError, TypeError):
        raise EvaluationError(f"{base}/models: does not answer as an OpenAI endpoint does") from None


def _first_client(base: str) -> httpx.Client:
    """A client of an endpoint that nobody has asked yet: what is wrong with the user's proxies shows here."""
    try:
        return httpx.Client(**client_options(base, CONNECT_TIMEOUT_S))
    except (ImportError, ValueError, httpx.InvalidURL) as error:
        reason = str(error).partition(". ")[0]
        raise EvaluationError(
            f"{base}: the environment names a proxy that cannot be used ({reason}); give ALL_PROXY, HTTP_PROXY or "
            f"HTTPS_PROXY an http address, or name {urlsplit(base).hostname} in NO_PROXY"
        ) from None


def ask(
    base: str, requests: Iterable[Request], receive: Callable[[Reply], None], *, concurrency: int, timeout_s: float
) -> None:
    """Send every request, at most ``concurrency`` at a time, and hand each reply to ``receive`` as it comes.

    ``receive`` is called from this thread's event loop, one reply at a time. The first failure ends all; replies that
    came before it have been received.
    """
    asyncio.run(_ask(base, list(requests), receive, concurrency, timeout_s))


async def _ask(
    base: str, requests: list[Request], receive: Callable[[Reply], None], concurrency: int, timeout_s: float
) -> None:
    waiting = iter(requests)
    limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)

    async with httpx.AsyncClient(limits=limits, **client_options(base, timeout_s)) as client:

        async def work() -> None:
            for request in waiting:
                receive(await _post(client, base, request))

        workers = [asyncio.create_task(work()) for _ in range(min(concurrency, len(requests)))]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)


async def _post(client: httpx.AsyncClient, base: str, request: Request) -> Reply:
    reason = ""
    for pause in (0.0, *RETRY_PAUSES_S):
        await asyncio.sleep(pause)
        begin = time.monotonic()
        try:
            response = await client.post(f"{base}/{request.path}", json=request.payload)
        except httpx.ReadTimeout:
            limit = client.timeout.read
            raise EvaluationError(f"{base}: no answer to {request.key} within {limit:.0f} s; see --timeout") from None
        except httpx.HTTPError as error:
            reason = _reason(error)
            continue
        if response.status_code == httpx.codes.TOO_MANY_REQUESTS or response.is_server_error:
            reason = f"status {response.status_code}: {_detail(response)}"
            continue
        return Reply(request.key, _body(base, request, response), time.monotonic() - begin)
    raise EvaluationError(
        f"{base}: the endpoint stopped answering ({reason}); "
        "the answers so far are kept, and the same command goes on from them"
    )


def _body(base: str, request: Request, response: httpx.Response) -> dict[str, Any]:
    if response.is_error:
        detail = _detail(response)
        raise EvaluationError(f"{base}: refused {request.key} with status {response.status_code}: {detail}")
    try:
        body = response.json()
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise EvaluationError(f"{base}/{request.path}: does not answer as an OpenAI endpoint does")
    return body


def _detail(response: httpx.Response) -> str:
    """The server's own message in one line."""
    try:
        body = response.json()
        text = body["error"]["message"] if isinstance(body.get("error"), dict) else json.dumps(body)
    except (ValueError, KeyError, AttributeError):
        text = response.text
    return " ".join(str(text).split())[:_MAX_DETAIL]


def client_options(base: str, timeout_s: float) -> dict[str, Any]:
    """What any httpx client of the endpoint at ``base`` is made with: the user's key, proxies save to this machine."""
    key = os.environ.get("OPENAI_API_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    timeout = httpx.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S)
    # A proxy of the environment is not meant for this machine itself.
    return {"headers": headers, "timeout": timeout, "trust_env": urlsplit(base).hostname not in _LOOPBACK}


def _reason(error: Exception) -> str:
    return str(error).strip() or type(error).__name__
