"""The quantize stage, in whatever environment it was started in: request in, artifact out."""

from __future__ import annotations

from typing import cast

from fourfold.artifact import ArtifactWriter
from fourfold.calibration import TokenSet
from fourfold.checkpoint.index import TensorFolder
from fourfold.interfaces.quantizer import QuantizeJob, QuantizerOptions
from fourfold.manifest import CalibrationRecord, Manifest
from fourfold.models.gemma4 import read_gemma4
from fourfold.plugins import Registry, Role
from fourfold.progress import Progress
from fourfold.stages.request import QuantizeRequest
from fourfold.targets import resolve_targets
from fourfold.versions import package_versions


def run_quantize(request: QuantizeRequest, registry: Registry, progress: Progress) -> Manifest:
    """Quantize into ``request.output``, an existing empty folder, with as many threads as it says."""
    import torch

    torch.set_num_threads(request.threads)
    unfuser_entry = registry.get(Role.UNFUSER, request.unfuser.name)
    quantizer_entry = registry.quantizer(request.quantizer.name)
    unfuser_options = unfuser_entry.options.parse(request.unfuser.options, where="unfuser")
    quantizer_options = cast(
        QuantizerOptions, quantizer_entry.options.parse(request.quantizer.options, where="quantizer")
    )
    unfuser = registry.load(Role.UNFUSER, unfuser_entry.name)(unfuser_options)
    quantizer = registry.load(Role.QUANTIZER, quantizer_entry.name)(quantizer_options)
    source = TensorFolder(request.model_path)
    gemma = read_gemma4(source)
    tokens = TokenSet.load(request.tokens_path) if request.tokens_path else None
    job = QuantizeJob(
        model_path=request.model_path,
        source=source,
        gemma=gemma,
        targets=resolve_targets(gemma, request.recipe),
        recipe=request.recipe,
        tokens=tokens,
        batch_size=request.batch_size,
        unfuser_name=unfuser_entry.name,
        unfuser=unfuser,
        device=request.device,
        seed=request.seed,
        stage_sha256=request.stage_sha256,
    )
    writer = ArtifactWriter(request.output, job)
    quantizer.quantize(job, writer, progress)
    progress.begin("kept tensors and hashes", total=None, unit="file")
    return writer.finish(
        {
            "source_files": request.source_files,
            "unfuser": {"name": unfuser_entry.name, "options": unfuser_options.model_dump(mode="json")},
            "quantizer": {"name": quantizer_entry.name, "options": quantizer_options.recorded()},
            "calibration": _calibration_record(tokens),
            "packages": package_versions(),
            "threads": request.threads,
        }
    )


def _calibration_record(tokens: TokenSet | None) -> dict[str, object] | None:
    if tokens is None:
        return None
    record = tokens.record
    return CalibrationRecord(
        spec=record.spec.model_dump(mode="json"),
        source_sha256=record.texts_sha256,
        tokens_sha256=record.tokens_sha256,
        num_tokens=record.num_tokens,
    ).model_dump(mode="json")
