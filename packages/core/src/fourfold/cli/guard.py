"""Exit codes: 0 done, 1 the thing checked is wrong, 2 bad input or environment, 130 interrupted."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import ParamSpec

P = ParamSpec("P")
INTERRUPTED = 130


def guarded(command: Callable[P, int | None]) -> Callable[P, None]:
    """Turn a command's return value into its exit code and an expected failure into one line on stderr."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        import typer

        from fourfold.checkpoint.untrusted import printable
        from fourfold.errors import FourfoldError

        try:
            code = command(*args, **kwargs) or 0
        except FourfoldError as error:
            # A message may carry names out of a hostile file; a log's tail has lines of its own.
            lines = [printable(line, len(line)) for line in str(error).splitlines()]
            print("fourfold: " + "\n".join(lines), file=sys.stderr)
            code = error.exit_code
        except KeyboardInterrupt:
            print("fourfold: interrupted; the same command goes on from the last finished stage", file=sys.stderr)
            code = INTERRUPTED
        raise typer.Exit(code)

    return run
