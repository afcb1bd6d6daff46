"""The demo model, loaded once, with the network out of reach."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from fourfold.demo import MODEL_NAME


@pytest.fixture(scope="session")
def demo_model() -> Iterator[tuple[Any, Any]]:
    """(model, processor) as ``fourfold.demo.evaluate.load`` gives them; any connection attempt fails the test."""
    from fourfold.demo.evaluate import load

    def refuse(*_arguments: object) -> None:
        raise AssertionError("loading the demo model tried to open a connection")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        yield load(MODEL_NAME, "cpu")
