"""``python -m fourfold.conformance PLUGIN ROLE NAME [--option KEY=VALUE]``: the checks without pytest.

Prints one line of JSON a check; exit code 1 when a promise is broken, 2 for a name that is not there.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from fourfold.config import parse_pairs
from fourfold.conformance.checks import CHECKS, Verdict, run_check
from fourfold.conformance.subject import Subject
from fourfold.errors import FourfoldError
from fourfold.plugins import Role


def main(arguments: list[str]) -> int:
    """Run every check of one entry."""
    parser = argparse.ArgumentParser(prog="python -m fourfold.conformance")
    parser.add_argument("plugin", help="module of hooks, such as my_plugin.hooks")
    parser.add_argument("role", type=Role, choices=list(Role))
    parser.add_argument("name", help="name of the entry")
    parser.add_argument("--option", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--keeps-fused", action="store_true", help="an unfuser that leaves experts to its quantizer")
    parser.add_argument("--output-tolerance", type=float, default=0.0)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="fourfold-conformance-") as work:
        subject = Subject(
            plugin=given.plugin,
            role=given.role,
            name=given.name,
            work=Path(work),
            options=parse_pairs(given.option),
            keeps_fused=given.keeps_fused,
            output_tolerance=given.output_tolerance,
        )
        try:
            subject.entry  # noqa: B018 - an unknown name is a wrong call, no broken promise
        except FourfoldError as error:
            print(f"fourfold.conformance: {error}", file=sys.stderr)
            return error.exit_code
        broken = 0
        for check in CHECKS[given.role]:
            outcome = run_check(check, subject)
            broken += outcome.verdict is Verdict.BROKEN
            print(outcome.model_dump_json(), flush=True)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
