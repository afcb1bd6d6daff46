"""Runs in vLLM's environment: ``python -m fourfold_vllm.bench_client COMMANDS.json RESULTS.jsonl``.

``COMMANDS.json`` is a list of ``vllm bench serve`` argument lists. They run one after the other in this one process,
through the functions behind that command, since importing vLLM takes longer than most loads; each result is a line.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(arguments: list[str]) -> int:
    """Run every command; an error ends all, and what is written so far stays."""
    from vllm.benchmarks.serve import add_cli_args
    from vllm.benchmarks.serve import main as bench_serve
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    commands = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    parser = FlexibleArgumentParser()
    add_cli_args(parser)
    with Path(arguments[1]).open("a", encoding="utf-8") as results:
        for command in commands:
            measured = bench_serve(parser.parse_args(command))
            results.write(json.dumps(measured) + "\n")
            results.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
