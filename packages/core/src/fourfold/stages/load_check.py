"""The load check as a stage: a server loads a checkpoint in its own environment and reports."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from fourfold.config import Config
from fourfold.environments import ensure_environment
from fourfold.interfaces.load_check import LoadReport
from fourfold.plugins import Entry, Registry, Role
from fourfold.progress import Progress
from fourfold.stages.logs import log_folder
from fourfold.stages.process import run_in_process


class LoadCheckRequest(Config):
    """Load ``checkpoint`` with ``server``; the report is written to ``output``."""

    stage: Literal["load-check"] = "load-check"
    server: str
    checkpoint: Path
    output: Path


def check_load(entry: Entry, checkpoint: Path, progress: Progress) -> LoadReport:
    """The report of the server ``entry``, from a process of its environment.

    Raises :class:`fourfold.errors.StageError` with the end of its log when the process dies, as for want of memory;
    the log is kept then.
    """
    python = ensure_environment(entry.environment, progress)
    with log_folder("load", progress) as folder:
        output = folder / "report.json"
        request = LoadCheckRequest(server=entry.name, checkpoint=checkpoint.absolute(), output=output)
        run_in_process(python, request, folder / "load.log", progress)
        return LoadReport.model_validate_json(output.read_bytes())


def run_load_check(request: LoadCheckRequest, registry: Registry, progress: Progress) -> None:
    """In the server's environment: load, and write the report."""
    entry = registry.get(Role.SERVER, request.server)
    server = registry.load(Role.SERVER, entry.name)(entry.options())
    report: LoadReport = server.check_load(request.checkpoint, progress)
    request.output.write_text(report.model_dump_json(), encoding="utf-8")
