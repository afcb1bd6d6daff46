"""The demo model, loaded once, with the network out of reach."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from fourfold.demo import MODEL_NAME


@contextmanager
def no_network() -> Iterator[None]:
    """Any attempt to connect fails the test."""

    def refuse(*_arguments: object) -> None:
        raise AssertionError("the demo model tried to open a connection")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        yield


@pytest.fixture(autouse=True)
def offline() -> Iterator[None]:
    """For as long as a test of this folder runs, and no longer: other folders' tests have servers to ask."""
    with no_network():
        yield


@pytest.fixture(scope="session")
def demo_model() -> tuple[Any, Any]:
    """(model, processor) as ``fourfold.demo.evaluate.load`` gives them."""
    from fourfold.demo.evaluate import load

    with no_network():
        return load(MODEL_NAME, "cpu")
