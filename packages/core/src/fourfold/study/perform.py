"""Performing one job of a study: in this process, or in a task on another machine."""

from __future__ import annotations

import shutil
import traceback
from pathlib import Path

from fourfold.errors import CheckpointError, FourfoldError
from fourfold.evaluate.run import evaluate
from fourfold.manifest import MANIFEST_FILE, Manifest, sha256_file
from fourfold.pipeline import Pipeline, QuantizeResult
from fourfold.plan import plan_quantize
from fourfold.plugins import Registry
from fourfold.progress import Progress
from fourfold.study.asked import discard_others, evaluation_identity, mark
from fourfold.study.jobs import Job, JobKind, Outcome
from fourfold.study.pairs import is_equal_to_artifact
from fourfold.study.results import CellResult, count_rare_experts
from fourfold.verify import VerifyReport


def perform(job: Job, registry: Registry, progress: Progress) -> Outcome:
    """Run ``job``; a failure of whatever kind is its outcome, an interruption is not caught."""
    try:
        return _perform(job, registry, progress)
    except FourfoldError as error:
        return Outcome(job=job.name, error_type=type(error).__name__, error=str(error))
    except Exception as error:  # noqa: BLE001 - a plugin's fault must not end the jobs of the others
        text = "".join(traceback.format_exception(error))
        return Outcome(job=job.name, error_type=type(error).__name__, error=text)


def failed_before(job: Job, cause: Outcome) -> Outcome:
    """The outcome of a job that could not be begun, since one before it failed: that one's error."""
    return cause.model_copy(update={"job": job.name, "stages": (), "result": None})


def _perform(job: Job, registry: Registry, progress: Progress) -> Outcome:
    if job.evaluation is not None:
        asked, folder = evaluation_identity(job.evaluation, registry, job.source_files), job.evaluation.output
        discard_others(folder, asked)
        mark(folder, asked)
        record = evaluate(job.evaluation, registry, progress)
        return Outcome(job=job.name, record=record, identity=asked.sha256())
    output = Path(job.output)
    folder = output / "checkpoints" / job.cell
    pipeline = Pipeline(
        plan_quantize(job.config, registry),
        registry,
        progress,
        output=folder,
        stages=output / "stages",
        source_files=job.source_files,
        threads=job.threads,
    )
    match job.kind:
        case JobKind.TOKENS:
            pipeline.make_tokens()
        case JobKind.QUANTIZE:
            pipeline.make_artifact()
        case JobKind.CELL:
            # What an interrupted or changed run left; the folder is ours, by the study's cells.
            shutil.rmtree(folder, ignore_errors=True)
            folder.parent.mkdir(parents=True, exist_ok=True)
            result, report = pipeline.run()
            return Outcome(job=job.name, result=_record(job, pipeline, result, report, progress))
    return Outcome(job=job.name, stages=pipeline.stage_times)


def _record(
    job: Job, pipeline: Pipeline, result: QuantizeResult, report: VerifyReport, progress: Progress
) -> CellResult:
    folder, artifact = Path(result.output), pipeline.artifact_path
    if artifact is None:
        raise CheckpointError(f"{folder}: the pipeline ended without an artifact")
    manifest = Manifest.read(folder)
    return CellResult(
        name=job.cell,
        status="done",
        identity=job.identity,
        config=job.config,
        checkpoint=str(folder.relative_to(job.output)),
        artifact=str(artifact.relative_to(job.output)),
        manifest_sha256=sha256_file(folder / MANIFEST_FILE),
        bytes_before=result.bytes_before,
        bytes_after=result.bytes_after,
        quantized_modules=result.quantized_modules,
        verified=result.verified,
        findings=sum(report.num_findings.values()),
        checks=sum(report.checked.values()),
        equal_to_artifact=is_equal_to_artifact(folder, artifact, progress) if job.compare else None,
        rare_experts=count_rare_experts(manifest),
        fallbacks=result.fallbacks,
        tokens_sha256=manifest.calibration.tokens_sha256 if manifest.calibration else None,
        packages=manifest.packages,
        stages=result.stages,
    )
