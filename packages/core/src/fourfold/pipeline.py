"""A planned run, stage by stage: tokens, quantize, export, verify. Finished stages are reused."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TypeVar

from fourfold.artifact import Artifact
from fourfold.calibration.build import build_token_set
from fourfold.calibration.sources import source_files
from fourfold.calibration.spec import CalibrationSpec
from fourfold.calibration.tokens import TokenSet
from fourfold.checkpoint.atomic import absolute, atomic_folder
from fourfold.checkpoint.index import TensorFolder
from fourfold.checkpoint.layouts import detect_layout
from fourfold.config import Config
from fourfold.environments import ensure_environment, environment_sha256
from fourfold.errors import FourfoldError
from fourfold.manifest import Component, Manifest, sha256_file, sha256_files
from fourfold.plan import QuantizePlan, require_apart, require_output
from fourfold.plugins import Registry, Role
from fourfold.progress import Progress
from fourfold.stages.process import run_in_process
from fourfold.stages.request import QuantizeRequest, num_threads
from fourfold.stages.store import StageStore, identity_sha256
from fourfold.stages.unverified import UnverifiedNote
from fourfold.verify import VerifyReport, verify_checkpoint

T = TypeVar("T")


class StageTime(Config):
    """One stage's wall time; ``reused`` when it had been finished before."""

    name: str
    seconds: float
    reused: bool


class QuantizeResult(Config):
    """What ``fourfold quantize --json`` prints."""

    output: str
    bytes_before: int
    bytes_after: int
    quantized_modules: int
    calibration_tokens: int
    #: Experts that saw no token, and those that were routed none: the same unless every expert was shown every token.
    uncalibrated_experts: tuple[str, ...]
    unrouted_experts: tuple[str, ...]
    fallbacks: int
    verified: bool
    findings: int
    stages: tuple[StageTime, ...]

    @property
    def factor(self) -> float:
        """How many times smaller the checkpoint is."""
        return self.bytes_before / self.bytes_after


class Pipeline:
    """Runs one plan. ``stages`` keeps finished stages for other runs; without it they go when the run has ended well.

    ``source_files`` are the model's hashes where the caller has them already; the model is then not read for them.
    ``threads`` are the quantize stage's; without it, as many as torch takes here.
    """

    def __init__(
        self,
        plan: QuantizePlan,
        registry: Registry,
        progress: Progress,
        *,
        output: Path,
        stages: Path | None = None,
        source_files: dict[str, str] | None = None,
        threads: int | None = None,
    ) -> None:
        self._plan, self._registry, self._progress = plan, registry, progress
        self._output = absolute(output)
        self._keep = stages is not None
        self._store = StageStore(stages or self._output.with_name(f".{self._output.name}.stages"))
        self._source_files, self._threads = source_files, threads
        self._times: list[StageTime] = []
        #: The artifact the checkpoint was written from, once there is one.
        self.artifact_path: Path | None = None

    @property
    def stage_times(self) -> tuple[StageTime, ...]:
        """The stages so far, in order."""
        return tuple(self._times)

    def make_tokens(self) -> Path | None:
        """The token set's folder, or None for a quantizer that reads no tokens."""
        return self._tokens(self._hashes()) if self._plan.needs_tokens else None

    def make_artifact(self) -> Path:
        """The artifact's folder, its token set made on the way."""
        tokens = self.make_tokens()
        self.artifact_path = self._quantize(self._hashes(), tokens)
        return self.artifact_path

    def run(self) -> tuple[QuantizeResult, VerifyReport]:
        """All stages; the verifier's report comes with the result, and its findings are the caller's to judge."""
        require_apart(self._output, self._store.folder)
        # Kept stages are shared by runs at work at the same time; a run's own are removed at its end.
        with nullcontext() if self._keep else self._store.of_one_run(self._output):
            return self._run()

    def _run(self) -> tuple[QuantizeResult, VerifyReport]:
        note = UnverifiedNote(self._store.folder, self._output)
        written = note.exists and note.fits(self.identity())
        if not written:
            require_output(self._plan, self._output)
        artifact = Artifact(self.make_artifact())
        if written:
            self._times.append(StageTime(name="export", seconds=0.0, reused=True))
        else:
            self._export(artifact, note)
        report = self._timed("verify", self._verify)
        result = self._result(artifact.manifest, report)
        artifact.tensors.close()
        note.clear()
        return result, report

    def _hashes(self) -> dict[str, str]:
        if self._source_files is None:
            self._source_files = hash_source(self._plan.model_path, self._progress)
        return self._source_files

    def _timed(self, name: str, work: Callable[[], T]) -> T:
        start = time.monotonic()
        value = work()
        self._times.append(StageTime(name=name, seconds=time.monotonic() - start, reused=False))
        return value

    def _stage(self, name: str, identity: Mapping[str, object], work: Callable[[Path], None]) -> Path:
        start = time.monotonic()

        def waits() -> None:
            self._progress.note(f"another run makes the same {name} stage; waiting for it")

        with self._store.alone(name, identity, waits):
            folder = self._store.find(name, identity)
            reused = folder is not None
            if folder is None:
                with self._store.create(name, identity) as (partial, final):
                    work(partial)
                folder = final
        self._times.append(StageTime(name=name, seconds=time.monotonic() - start, reused=reused))
        return folder

    def _tokens(self, source_files: Mapping[str, str]) -> Path:
        spec = self._plan.config.calibration
        identity: dict[str, object] = {
            "spec": spec.model_dump(mode="json"),
            "tokenizer": {k: v for k, v in source_files.items() if not k.endswith(".safetensors")},
            "file_sha256": _source_sha256(spec),
            "environment": environment_sha256(None),
        }

        def work(folder: Path) -> None:
            build_token_set(spec, self._plan.model_path, self._progress, folder).save(folder)

        return self._stage("tokens", identity, work)

    def _quantize(self, source_files: dict[str, str], tokens: Path | None) -> Path:
        python = ensure_environment(self._plan.quantizer.environment, self._progress)
        request = self._request(source_files, tokens)
        identity = self._quantize_identity(request)
        stage_sha256 = identity_sha256(identity)
        request = request.model_copy(update={"stage_sha256": stage_sha256})
        log = self._store.log("quantize", identity)

        def work(folder: Path) -> None:
            run_in_process(python, request.model_copy(update={"output": folder.absolute()}), log, self._progress)

        stage = self._stage("quantize", identity, work)
        self._plan.quantizer_options.clean_up(stage_sha256)
        return stage

    def _request(self, source_files: dict[str, str], tokens: Path | None) -> QuantizeRequest:
        plan = self._plan
        return QuantizeRequest(
            model_path=plan.model_path.absolute(),
            source_files=source_files,
            tokens_path=tokens.absolute() if tokens else None,
            tokens_sha256=TokenSet.load(tokens).sha256 if tokens else None,
            output=Path(),
            recipe=plan.config.recipe,
            unfuser=plan.unfuser,
            quantizer=Component(name=plan.quantizer.name, options=plan.quantizer_options.model_dump(mode="json")),
            batch_size=plan.config.calibration.batch_size,
            device=plan.config.device,
            seed=plan.config.seed,
            threads=self._threads or num_threads(),
        )

    def _quantize_identity(self, request: QuantizeRequest) -> dict[str, object]:
        quantizer, unfuser = self._plan.quantizer, self._registry.get(Role.UNFUSER, self._plan.unfuser.name)
        return request.identity | {
            "environment": environment_sha256(quantizer.environment, quantizer.implementation, unfuser.implementation),
            "quantizer": {"name": quantizer.name, "options": self._plan.quantizer_options.recorded()},
        }

    def identity(self) -> dict[str, object]:
        """All that decides the checkpoint, in JSON terms, known before any stage is run: what tokens are made of stands
        in for them.
        """
        layout, spec = self._plan.config.layout, self._plan.config.calibration
        exporter = self._registry.get(Role.EXPORTER, layout)
        needs_tokens = self._plan.needs_tokens
        return self._quantize_identity(self._request(self._hashes(), None)) | {
            "calibration": spec.model_dump(mode="json") if needs_tokens else None,
            "calibration_file": _source_sha256(spec) if needs_tokens else None,
            "layout": layout,
            # Tokens are made here too, whatever environment the quantizer has.
            "here": environment_sha256(None, exporter.implementation),
        }

    def _export(self, artifact: Artifact, note: UnverifiedNote) -> None:
        layout = self._plan.config.layout
        entry = self._registry.get(Role.EXPORTER, layout)
        exporter = self._registry.load(Role.EXPORTER, layout)(entry.options())

        def work() -> None:
            with atomic_folder(self._output) as partial:
                exporter.export(artifact, partial, self._progress)
                write_checkpoint_manifest(artifact, layout, partial)
                note.write(self.identity(), partial)

        self._timed("export", work)

    def _verify(self) -> VerifyReport:
        return verify_checkpoint(self._output, source=self._plan.model_path, progress=self._progress)

    def _result(self, manifest: Manifest, report: VerifyReport) -> QuantizeResult:
        return QuantizeResult(
            output=str(self._output),
            bytes_before=self._plan.bytes_before,
            bytes_after=sum(p.stat().st_size for p in self._output.glob("*.safetensors")),
            quantized_modules=len(manifest.quantized_modules),
            calibration_tokens=manifest.calibration.num_tokens if manifest.calibration else 0,
            uncalibrated_experts=() if manifest.shows_all_experts else unrouted_experts(manifest),
            unrouted_experts=unrouted_experts(manifest),
            fallbacks=len(manifest.fallbacks),
            verified=report.ok,
            findings=sum(report.num_findings.values()),
            stages=tuple(self._times),
        )


def hash_source(model_path: Path, progress: Progress) -> dict[str, str]:
    """Digests of the model's files, by name; a model card decides nothing."""
    progress.begin("source hashes", total=None, unit="file")
    return sha256_files(model_path, skip=("README.md", "manifest.json"))


def write_checkpoint_manifest(artifact: Artifact, exporter: str, folder: Path) -> None:
    """The artifact's manifest as the checkpoint's: the layout its tensors are in, and its own files' hashes.

    An exporter may write a known layout's keys under a name of its own.
    """
    changes = {
        "kind": "checkpoint",
        "layout": detect_layout(TensorFolder(folder)).name,
        "exporter": Component(name=exporter),
        "files": sha256_files(folder),
    }
    artifact.manifest.model_copy(update=changes).write(folder)


def unrouted_experts(manifest: Manifest) -> tuple[str, ...]:
    """Experts that were routed no calibration token, ``<experts module>.<index>``."""
    return tuple(
        f"{module}.{expert}"
        for module, counts in manifest.expert_token_counts.items()
        for expert, count in enumerate(counts)
        if count == 0
    )


def _source_sha256(spec: CalibrationSpec) -> str | None:
    """Digest of a local calibration file, its pictures included; a hub data set is known by name and hashed once its
    texts are read.
    """
    path, digests = Path(spec.source), []
    try:
        for path in source_files(spec):
            digests.append(sha256_file(path))
    except OSError as error:
        raise FourfoldError(f"{path}: cannot be read ({error.strerror})") from None
    if len(digests) < 2:
        return digests[0] if digests else None
    return hashlib.sha256("".join(digests).encode()).hexdigest()
