"""Everything measured below one folder: a study's results, evaluations, benches, sensitivity reports, manifests."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal

from fourfold.bench.run import BenchReport
from fourfold.checkpoint.index import read_json
from fourfold.config import Config
from fourfold.errors import CheckpointError, ConfigError, OutputError
from fourfold.manifest import MANIFEST_FILE, Manifest, sha256_file
from fourfold.results import BASELINE_FOLDER, EVAL_FILE, EvalRecord
from fourfold.sensitivity.report import SensitivityReport, read_sensitivity
from fourfold.study.results import RESULTS_FILE, StudyResults
from fourfold.versions import package_versions

SCHEMA_VERSION: Final = 1
#: How many folders deep below the given one files are looked for.
_DEPTH = 3
#: A folder with this is a report's, and no record in it is read.
REPORT_PAGE: Final = "report.html"
_BENCHES, _SENSITIVITIES = "bench*.json", "sensitivity*.json"
_RECORDS = (EVAL_FILE, MANIFEST_FILE, _BENCHES, _SENSITIVITIES)


class NamedEval(Config):
    """An evaluation and the name it goes by: the study's cell, else the folder."""

    name: str
    record: EvalRecord


class NamedManifest(Config):
    """A checkpoint's manifest, without its lists of tensors, and the folder it stands in, relative to the given one."""

    name: str
    folder: str
    manifest_sha256: str
    manifest: Manifest


class Measured(Config):
    """``results.json`` of a report: every record that was found, whole, and what was not there.

    Attributes:
        packages: of the process that wrote the report; each record has those of its own.
        gpus: named by any of the records.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    name: str
    packages: dict[str, str]
    gpus: tuple[str, ...]
    study: StudyResults | None
    evaluations: tuple[NamedEval, ...]
    benches: tuple[BenchReport, ...]
    sensitivities: tuple[SensitivityReport, ...]
    checkpoints: tuple[NamedManifest, ...]
    absent: tuple[str, ...]


def collect(folder: Path) -> Measured:
    """Read every record below ``folder``.

    Raises :class:`OutputError` for a folder that is absent or holds no record at all, and the record's own error for
    one that cannot be read: a report leaves nothing out in silence.
    """
    if not folder.is_dir():
        raise OutputError(f"{folder}: no such folder; give the output of fourfold study run or fourfold eval")
    study = _study(folder)
    evaluations = _evaluations(folder, study)
    benches = tuple(BenchReport.parse(read_json(path), where=str(path)) for path in _find(folder, _BENCHES))
    sensitivities = tuple(read_sensitivity(path) for path in _find(folder, _SENSITIVITIES))
    checkpoints = tuple(_checkpoints(folder))
    if not (study or evaluations or benches or sensitivities):
        raise OutputError(
            f"{folder}: nothing measured there; expected {RESULTS_FILE} of a study, {EVAL_FILE}, bench.json or "
            "sensitivity.json"
        )
    machines = [named.record.machine for named in evaluations] + [bench.machine for bench in benches]
    return Measured(
        name=study.study.name if study else folder.resolve().name,
        packages=package_versions(),
        gpus=tuple(sorted({gpu for machine in machines for gpu in machine.gpus})),
        study=study,
        evaluations=evaluations,
        benches=benches,
        sensitivities=sensitivities,
        checkpoints=checkpoints,
        absent=tuple(_absent(evaluations, benches, sensitivities, checkpoints)),
    )


def records_in(folder: Path) -> list[Path]:
    """Files in ``folder`` itself that a report would read as records, but for those of an earlier report."""
    found = [path for pattern in _RECORDS for path in sorted(folder.glob(pattern))]
    results = folder / RESULTS_FILE
    return found + ([results] if results.is_file() and not (folder / REPORT_PAGE).is_file() else [])


def _study(folder: Path) -> StudyResults | None:
    path = folder / RESULTS_FILE
    if not path.is_file():
        return None
    try:
        return StudyResults.parse(read_json(path), where="")
    except ConfigError as error:
        raise CheckpointError(f"{path}: not a study's results ({error})") from None


def _evaluations(folder: Path, study: StudyResults | None) -> tuple[NamedEval, ...]:
    found = {}
    for result in study.evaluations if study else ():
        if result.record is not None:
            found[result.folder] = NamedEval(name=result.name, record=result.record)
    for path in _find(folder, EVAL_FILE):
        place = path.parent.relative_to(folder)
        if BASELINE_FOLDER not in place.parts and str(place) not in found:
            record = EvalRecord.load(path.parent)
            found[str(place)] = NamedEval(name=record.model.name, record=record)
    return tuple(found.values())


def _checkpoints(folder: Path) -> Iterator[NamedManifest]:
    for path in _find(folder, MANIFEST_FILE):
        manifest = Manifest.read(path.parent)
        if manifest.kind == "checkpoint":
            place = path.parent.relative_to(folder)
            slim = manifest.model_copy(update={"tensors": {}, "quantized_modules": (), "files": {}})
            yield NamedManifest(
                name=path.parent.resolve().name, folder=str(place), manifest_sha256=sha256_file(path), manifest=slim
            )


def _find(folder: Path, pattern: str) -> list[Path]:
    """Files of that name at most ``_DEPTH`` folders down, in order; a report's own output is none of them."""
    found = {path for depth in range(_DEPTH + 1) for path in folder.glob("*/" * depth + pattern)}
    return sorted(path for path in found if path.is_file() and not (path.parent / REPORT_PAGE).exists())


def _absent(
    evaluations: tuple[NamedEval, ...],
    benches: tuple[BenchReport, ...],
    sensitivities: tuple[SensitivityReport, ...],
    checkpoints: tuple[NamedManifest, ...],
) -> Iterator[str]:
    """One line for each part of a full report that nothing was found for."""
    records = [named.record for named in evaluations]
    if not records:
        yield "scores: no evaluation (fourfold eval)"
    elif not any(record.comparisons for record in records):
        yield "retained quality: no evaluation has a baseline (fourfold eval --baseline)"
    if not any(metric.unit == "nats" for record in records for task in record.tasks for metric in task.metrics):
        yield "KL of the served model: no evaluation has it (fourfold eval --tasks kl)"
    if not sensitivities:
        yield "errors and KL by layer and role: no sensitivity report (fourfold sensitivity --output sensitivity.json)"
    if not benches and not any(record.task("speed") for record in records):
        yield "speed: no bench and no evaluation of it (fourfold bench --output bench.json)"
    if not sensitivities and not any(checkpoint.manifest.expert_token_counts for checkpoint in checkpoints):
        yield "expert coverage: no manifest and no sensitivity report with token counts"


def canonical(measured: Measured) -> str:
    """``results.json`` as written: indented, keys in the order of the schema."""
    return json.dumps(measured.model_dump(mode="json"), indent=1) + "\n"
