"""Exit codes: 0 done, 1 the thing checked is wrong, 2 bad input or environment, 130 interrupted."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import typer

INTERRUPTED = 130


def run_guarded(app: typer.Typer) -> int:
    """Run the command line; an expected failure is one line on stderr, never a traceback."""
    from fourfold.errors import FourfoldError

    try:
        # Not standalone: click would turn Ctrl-C into exit code 1, which means "checked and wrong" here.
        code = app(standalone_mode=False)
    except KeyboardInterrupt:
        return _say("interrupted; finished stages are kept, and the same command goes on from them", INTERRUPTED)
    except FourfoldError as error:
        return _say(str(error), error.exit_code)
    except BrokenPipeError:
        # The reader of our output is gone; Python would complain once more when it flushes on exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        return _usage_error(error)
    return code if isinstance(code, int) else 0


def _usage_error(error: Exception) -> int:
    """Show click's own complaints about options and arguments; anything else is a defect and keeps its traceback."""
    from fourfold.cli.app import is_usage_error

    if not is_usage_error(error):
        raise error
    error.show()  # type: ignore[attr-defined]
    return 2


def _say(message: str, code: int) -> int:
    print(f"fourfold: {message}", file=sys.stderr)
    return code
