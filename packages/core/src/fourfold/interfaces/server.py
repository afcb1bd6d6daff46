"""The role *server*: a checkpoint answering on an OpenAI endpoint.

A whole minimal plugin::

    from contextlib import contextmanager

    from fourfold.hookspecs import hookimpl
    from fourfold.interfaces.server import Endpoint, ServePlan, Server
    from fourfold.plugins import Entry

    class Elsewhere(Server):
        '''For a server somebody else runs.'''

        def plan(self, checkpoint):
            return ServePlan(command=("true",), reasons=())

        @contextmanager
        def serve(self, checkpoint, progress):
            yield Endpoint(url="http://127.0.0.1:8888/v1", model=checkpoint.name, owned=False)

        def measure(self, endpoint, loads, progress):
            raise NotImplementedError

    @hookimpl
    def fourfold_register_servers():
        return [Entry(name="elsewhere", summary="a running server", implementation="my_plugin:Elsewhere")]
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from pydantic import Field, FiniteFloat

from fourfold.config import Config, Options
from fourfold.errors import ConfigError
from fourfold.interfaces.load_check import LoadReport

if TYPE_CHECKING:
    from fourfold.progress import Progress

OptionsT = TypeVar("OptionsT", bound=Options)


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where to ask: base ``url`` of the OpenAI API (it ends in ``/v1``), the served ``model`` name, and whether we own
    the process. Of an owned one, ``pid`` is the head of its process group and ``log`` its output. ``root`` is the
    model's folder or hub id, where the server says it.
    """

    url: str
    model: str
    owned: bool
    pid: int | None = None
    log: Path | None = None
    root: str | None = None


class Reason(Config):
    """One flag or variable of a server's command, and why it is there, or why a published one is not."""

    flag: str
    why: str


class ServePlan(Config):
    """What a server would run, decided before anything is loaded; ``context_tokens`` is the longest it will take.

    ``docker`` is the same in the maker's container, empty where there is none. On several machines, ``first_node`` is
    to be given on the first of them, then ``other_nodes`` on each other, then ``command`` on the first.
    """

    command: tuple[str, ...]
    environment: dict[str, str] = Field(default_factory=dict)
    reasons: tuple[Reason, ...]
    context_tokens: int | None = None
    docker: tuple[str, ...] = ()
    first_node: tuple[str, ...] = ()
    other_nodes: tuple[str, ...] = ()


class Load(Config):
    """Requests to measure with: random prompts of ``input_tokens`` each answered with exactly ``output_tokens``, at
    most ``streams`` at a time. Loads of different seeds share no prompt.
    """

    input_tokens: int = Field(ge=1)
    output_tokens: int = Field(ge=1)
    streams: int = Field(default=1, ge=1)
    requests: int = Field(default=1, ge=1)
    seed: int = 0


class LoadResult(Config):
    """What one load took; a failed request is an error, not a result.

    ``output_tokens_s`` counts generated tokens over the whole load; ``ttft_s`` is the median time to the first token.
    """

    load: Load
    seconds: FiniteFloat
    output_tokens_s: FiniteFloat
    ttft_s: FiniteFloat
    num_output_tokens: int


class Server(ABC, Generic[OptionsT]):
    """Serves one checkpoint at a time."""

    def __init__(self, options: OptionsT) -> None:
        self.options = options

    @abstractmethod
    def plan(self, checkpoint: Path) -> ServePlan:
        """The command with its reasons; raises what :meth:`serve` would refuse before loading anything."""

    @abstractmethod
    def serve(self, checkpoint: Path, progress: Progress) -> AbstractContextManager[Endpoint]:
        """A context whose endpoint answers inside it; an owned process is gone after it, however it ends."""

    def check_load(self, checkpoint: Path, progress: Progress) -> LoadReport:
        """Load ``checkpoint`` into poisoned parameters and say what became of each key; called in the server's own
        environment. Raises :class:`ConfigError` for a server that cannot.
        """
        raise ConfigError(f"{type(self).__name__} has no load check; verify without --load, or choose another --server")

    @abstractmethod
    def measure(self, endpoint: Endpoint, loads: Sequence[Load], progress: Progress) -> tuple[LoadResult, ...]:
        """Put each load on an endpoint, one after the other, and say what it took."""
