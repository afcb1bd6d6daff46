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

        from fourfold.checkpoint.atomic import is_full_disk
        from fourfold.cli.console import plain
        from fourfold.errors import FourfoldError

        try:
            code = command(*args, **kwargs) or 0
        except FourfoldError as error:
            print(plain(f"fourfold: {error}"), file=sys.stderr)
            code = error.exit_code
        except OSError as error:
            # Lack of room is the machine's, whatever was being written; any other may be a fault of ours, and is shown.
            if not is_full_disk(error):
                raise
            where = f"{error.filename}: " if error.filename else ""
            print(plain(f"fourfold: {where}the disk is full ({error.strerror}); free some of it"), file=sys.stderr)
            code = FourfoldError.exit_code
        except KeyboardInterrupt:
            print("fourfold: interrupted; the same command goes on from the last finished stage", file=sys.stderr)
            code = INTERRUPTED
        raise typer.Exit(code)

    return run
