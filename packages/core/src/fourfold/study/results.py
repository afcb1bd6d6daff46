"""What a study found, as frozen records; ``results.json`` is one :class:`StudyResults`."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

from fourfold.checkpoint.atomic import write_whole
from fourfold.checkpoint.index import read_json
from fourfold.config import Config
from fourfold.errors import CheckpointError, ConfigError, OutputError
from fourfold.manifest import Manifest
from fourfold.pipeline import StageTime
from fourfold.plan import QuantizeConfig
from fourfold.results import EvalRecord
from fourfold.study.spec import Study

SCHEMA_VERSION: Final = 1
RESULTS_FILE = "results.json"
#: What a run writes into its folder before the first results: held while it works, and how a cluster's nodes see it.
LOCK_FILE = ".lock"
PROBE_PREFIX = ".probe-"
_PARTIAL_SUFFIX = ".partial"


class CellResult(Config):
    """One cell. A failed one has ``error`` and none of the figures.

    Attributes:
        identity: hash of all that decides the cell: its config, the source's files, the calibration file, packages and
            code of every step, and on a CPU the threads.
        manifest_sha256: of the checkpoint's manifest, which holds the digest of every other file.
        artifact: folder of the quantize stage, relative to the study's output.
        findings: of the verifier, its doubts among them.
        equal_to_artifact: whether the checkpoint's tensors are those its quantizer claimed; None when not compared.
        rare_experts: experts with fewer calibration tokens than ``recipe.min_expert_tokens``; None without counts.
        stages: as they were when the cell ran; ``reused`` ones had been finished by another cell or run.
    """

    name: str
    status: Literal["done", "failed"]
    identity: str
    config: QuantizeConfig
    checkpoint: str | None = None
    artifact: str | None = None
    manifest_sha256: str | None = None
    bytes_before: int | None = None
    bytes_after: int | None = None
    quantized_modules: int | None = None
    verified: bool | None = None
    findings: int | None = None
    checks: int | None = None
    equal_to_artifact: bool | None = None
    rare_experts: int | None = None
    fallbacks: int | None = None
    tokens_sha256: str | None = None
    packages: dict[str, str] | None = None
    stages: tuple[StageTime, ...] = ()
    error_type: str | None = None
    error: str | None = None

    @property
    def ok(self) -> bool:
        """Done, verified, and not unlike its artifact."""
        return self.status == "done" and self.verified is True and self.equal_to_artifact is not False

    @property
    def doubts(self) -> int:
        """Findings of a verified cell: what makes a checkpoint wrong leaves it unverified, so each is a doubt."""
        return (self.findings or 0) if self.verified else 0

    @property
    def factor(self) -> float | None:
        """How many times smaller the checkpoint is than the source's tensors."""
        return self.bytes_before / self.bytes_after if self.bytes_before and self.bytes_after else None

    @property
    def seconds(self) -> float:
        """Wall time of the stages that were not reused."""
        return sum(stage.seconds for stage in self.stages if not stage.reused)


class EvaluationResult(Config):
    """What a cell, or the baseline, came to once it was served; a failed one has ``error`` and no record.

    ``identity`` is the hash of all that decided it; ``folder`` holds every response, relative to the study's output.
    """

    name: str
    status: Literal["done", "failed"]
    identity: str | None
    folder: str
    record: EvalRecord | None = None
    error_type: str | None = None
    error: str | None = None


class Share(Config):
    """Tensors equal to the byte, and single elements that are not."""

    tensors: int
    equal: int
    elements: int
    differing_elements: int


class PairResult(Config):
    """Two cells of different quantizers, ``fourfold compare`` between their checkpoints.

    ``stands_for`` are the cells that share their quantize stage with A or B, and so their codes and scales.
    ``explained`` of ``differing`` weights have a named computation on both sides that gives their bytes back.
    """

    a: str
    b: str
    a_manifest_sha256: str
    b_manifest_sha256: str
    stands_for: tuple[str, ...]
    packed_weights: Share
    block_scales: Share
    causes: dict[str, int]
    differing: int
    explained: int


class StudyResults(Config):
    """``results.json``. ``study_sha256`` is the hash of all that the study says; ``packages`` are those of the process
    that ran it.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    study: Study
    study_sha256: str
    source_files: dict[str, str]
    packages: dict[str, str]
    complete: bool = False
    ok: bool = False
    cells: tuple[CellResult, ...] = ()
    pairs: tuple[PairResult, ...] = ()
    evaluations: tuple[EvaluationResult, ...] = ()

    def write(self, folder: Path) -> None:
        """Replace ``results.json`` in one step."""
        write_whole(folder / RESULTS_FILE, self.model_dump_json(indent=1) + "\n")


def read_results(folder: Path) -> StudyResults | None:
    """The results an earlier run left in ``folder``; None for a folder that is absent or empty, or in which a run was
    interrupted before its first results.

    Raises :class:`OutputError` for a folder with anything else in it.
    """
    if not folder.exists() or (folder.is_dir() and all(_is_beginning(path.name) for path in folder.iterdir())):
        return None
    if not (folder / RESULTS_FILE).is_file():
        raise OutputError(f"{folder}: not empty, and no study's output; choose another folder")
    try:
        return StudyResults.parse(read_json(folder / RESULTS_FILE), where="")
    except (CheckpointError, ConfigError) as error:
        raise OutputError(f"{folder / RESULTS_FILE}: not a study's results ({error}); choose another folder") from None


def _is_beginning(name: str) -> bool:
    return name == LOCK_FILE or name.startswith(PROBE_PREFIX) or (name[0] == "." and name.endswith(_PARTIAL_SUFFIX))


def count_rare_experts(manifest: Manifest) -> int | None:
    """Experts below ``recipe.min_expert_tokens``, 0 where all were shown every token; None without counts."""
    if not manifest.expert_token_counts:
        return None
    if manifest.shows_all_experts:
        return 0
    least = manifest.recipe.min_expert_tokens
    return sum(count < least for counts in manifest.expert_token_counts.values() for count in counts)
