"""Entry of a stage's process: ``python -m fourfold.stages.child REQUEST_FILE EVENT_FD``.

Events go to a descriptor of their own, since toolchains print on stdout and stderr as they please. The last event
is ``done`` or ``error``; a process that ends without either has crashed, and its log says how.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fourfold import errors
from fourfold.checkpoint.atomic import explain_os_error
from fourfold.plugins import Registry, build_plugin_manager
from fourfold.progress import EventProgress, Progress


def main(arguments: list[str]) -> int:
    """Run the request; 0 when a result was written, 3 when an error was reported as an event."""
    request_file, descriptor = Path(arguments[0]), int(arguments[1])
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        events = EventProgress(stream)
        data = json.loads(request_file.read_bytes())
        try:
            _STAGES[data["stage"]](data, events)
        except errors.FourfoldError as error:
            events.emit("error", type=type(error).__name__, message=str(error))
            return 3
        except OSError as error:
            explained = explain_os_error(error, Path(data["output"]))
            events.emit("error", type=type(explained).__name__, message=str(explained))
            raise
        except Exception as error:
            if out_of_memory := _out_of_memory(error, data.get("device")):
                events.emit("error", type="DeviceError", message=out_of_memory)
            raise
        events.emit("done")
    return 0


def _quantize(data: dict[str, Any], events: Progress) -> None:
    from fourfold.stages.quantize import run_quantize
    from fourfold.stages.request import QuantizeRequest

    run_quantize(QuantizeRequest.model_validate(data), Registry(build_plugin_manager()), events)


def _benchmark(data: dict[str, Any], events: Progress) -> None:
    from fourfold.stages.benchmark import BenchmarkRequest, run_benchmark

    run_benchmark(BenchmarkRequest.model_validate(data), Registry(build_plugin_manager()), events)


def _load_check(data: dict[str, Any], events: Progress) -> None:
    from fourfold.stages.load_check import LoadCheckRequest, run_load_check

    run_load_check(LoadCheckRequest.model_validate(data), Registry(build_plugin_manager()), events)


#: Each imports what it needs, and nothing of the others.
_STAGES: dict[str, Callable[[dict[str, Any], Progress], None]] = {
    "quantize": _quantize,
    "benchmark": _benchmark,
    "load-check": _load_check,
}


def _out_of_memory(error: Exception, device: str | None) -> str | None:
    from fourfold.engine.memory import is_out_of_memory

    if not is_out_of_memory(error):
        return None
    first = str(error).split(". ")[0]
    return f"device {device} ran out of memory ({first}); lower --batch-size, or --device auto"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
