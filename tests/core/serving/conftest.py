"""An OpenAI endpoint in this process, which answers what a test tells it to."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from fourfold.interfaces.server import Endpoint


class Script:
    """``models`` to list; ``answer(payload)`` gives a reply's text, or bytes to send as they are with ``status``."""

    def __init__(self) -> None:
        self.models: list[dict] = [{"id": "m"}]
        self.answer: Callable[[dict], str | bytes] = lambda payload: ""
        self.status = 200
        self.asked: list[dict] = []
        self.keys: list[str | None] = []


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def endpoint(script: Script) -> Iterator[Endpoint]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            script.keys.append(self.headers["Authorization"])
            version = {"version": "0.1"} if self.path == "/version" else {}
            self._send(json.dumps({"data": script.models, **version}).encode())

        def do_POST(self):
            script.keys.append(self.headers["Authorization"])
            payload = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            script.asked.append(payload)
            answer = script.answer(payload)
            if isinstance(answer, bytes):
                self._send(answer, script.status)
            elif payload["stream"]:
                self._send(as_stream(answer))
            else:
                self._send(json.dumps({"choices": [{"message": {"content": answer}}]}).encode())

        def _send(self, body: bytes, status: int = 200):
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield Endpoint(url=f"http://127.0.0.1:{server.server_port}/v1", model="m", owned=False)
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Name a proxy for every address, as a user's environment may."""

    def name(url: str) -> None:
        for variable in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(variable, raising=False)
        for variable in ("http_proxy", "HTTP_PROXY"):
            monkeypatch.setenv(variable, url)

    return name


def as_stream(text: str, *, pieces: int = 4, done: bool = True) -> bytes:
    """Server-sent events as OpenAI's, the first with a role and no text."""
    size = max(1, -(-len(text) // pieces))
    deltas: list[dict] = [{"role": "assistant", "content": ""}]
    deltas += [{"content": text[i : i + size]} for i in range(0, len(text), size)]
    events = [f"data: {json.dumps({'choices': [{'delta': delta}]})}\n\n" for delta in deltas]
    return "".join([*events, "data: [DONE]\n\n" if done else ""]).encode()
