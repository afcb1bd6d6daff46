"""The role *server*: a checkpoint answering on an OpenAI endpoint.

A whole minimal plugin::

    from contextlib import contextmanager

    from fourfold.hookspecs import hookimpl
    from fourfold.interfaces.server import Endpoint, Server
    from fourfold.plugins import Entry

    class Attached(Server):
        '''For a server somebody else runs.'''

        @contextmanager
        def serve(self, checkpoint, progress):
            yield Endpoint(url="http://127.0.0.1:8888/v1", model=checkpoint.name, owned=False)

    @hookimpl
    def fourfold_register_servers():
        return [Entry(name="attached", summary="a running server", implementation="my_plugin:Attached")]
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from fourfold.config import Options

if TYPE_CHECKING:
    from fourfold.progress import Progress

OptionsT = TypeVar("OptionsT", bound=Options)


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where to ask: base ``url`` of the OpenAI API, the served ``model`` name, and whether we own the process."""

    url: str
    model: str
    owned: bool


class Server(ABC, Generic[OptionsT]):
    """Serves one checkpoint at a time."""

    def __init__(self, options: OptionsT) -> None:
        self.options = options

    @abstractmethod
    def serve(self, checkpoint: Path, progress: Progress) -> AbstractContextManager[Endpoint]:
        """A context whose endpoint answers inside it; an owned process is gone after it, however it ends."""
