"""An OpenAI endpoint in this process: answers by a function, takes down what it was asked, and fails when told to."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Payload = dict[str, Any]


class FakeEndpoint:
    """``answer`` gets a chat payload; ``complete`` a completions payload and returns its whole body."""

    def __init__(self, answer: Callable[[Payload], str], complete: Callable[[Payload], Payload] | None = None) -> None:
        self.answer = answer
        self.complete = complete
        self.asked: list[Payload] = []
        #: Answers before every further request fails with ``status``; None: never.
        self.dies_after: int | None = None
        self.status = 503
        self.url = ""
        self.models: tuple[str, ...] = ("fake-model",)
        self.extra: Callable[[Payload], Payload] = lambda _payload: {}
        self.lock = threading.Lock()

    def respond(self, path: str, payload: Payload) -> tuple[int, Payload]:
        with self.lock:
            if self.dies_after is not None and len(self.asked) >= self.dies_after:
                return self.status, {"error": {"message": "the engine is dead"}}
            self.asked.append(payload)
        if path.endswith("/chat/completions"):
            message = {"role": "assistant", "content": self.answer(payload)}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            usage = {"prompt_tokens": 11, "completion_tokens": 7}
            body = {"choices": [choice], "usage": usage}
            extra = self.extra(payload)
            choice.update(extra.pop("choice", {}))
            return 200, body | extra
        if path.endswith("/completions") and self.complete:
            return 200, self.complete(payload)
        return 404, {"error": {"message": f"no {path}"}}


@contextmanager
def serving(endpoint: FakeEndpoint) -> Iterator[FakeEndpoint]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, *_arguments: object) -> None:
            pass

        def do_GET(self) -> None:
            self._send(200, {"data": [{"id": name} for name in endpoint.models]})

        def do_POST(self) -> None:
            payload = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self._send(*endpoint.respond(self.path, payload))

        def _send(self, status: int, body: Payload) -> None:
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    class Server(ThreadingHTTPServer):
        request_queue_size = 64  # as many as ask at once; five make the kernel put the others off

    server = Server(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    endpoint.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield endpoint
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def text_of(payload: Payload) -> str:
    """All text of a conversation, which tells prompts apart."""
    return json.dumps(payload["messages"], sort_keys=True)
