"""The pass over a checkpoint: folder rules first, then every tensor once in file order, then what needs them all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fourfold.checkpoint.index import DTYPE_BYTES
from fourfold.checkpoint.layouts import is_kv_scale
from fourfold.checkpoint.untrusted import printable
from fourfold.errors import CheckpointError, FourfoldError, RuleError
from fourfold.progress import NoProgress
from fourfold.verify.causes import Misfit
from fourfold.verify.checkpoint import PARTS, Checkpoint, Scalars, open_checkpoint, stored_bytes
from fourfold.verify.fit import MAX_TENSOR_ERROR
from fourfold.verify.inputs import note_norm
from fourfold.verify.loaders import loader_warnings
from fourfold.verify.module import ModuleView, PlainTensor
from fourfold.verify.registry import RULES
from fourfold.verify.report import VerifyReport
from fourfold.verify.rule import Look, Need, Phase, Rule
from fourfold.verify.schemes import scheme_text
from fourfold.verify.shards import StoredTensor, TensorReader

if TYPE_CHECKING:
    from fourfold.progress import Progress

#: Kept tensors are read in pieces of this size, so that an embedding of gigabytes is never whole in memory.
_PIECE_BYTES = 32 * 2**20
#: What is larger is no part of a Gemma 4 model (its shape is a finding), and reading it would exhaust memory or time.
_MAX_MODULE_BYTES, _MAX_PLAIN_BYTES = 2**30, 2**33
#: Findings of these rules say already why a module does not decode to its source.
_DAMAGES = ("FF040", "FF041", "FF050", "FF051", "FF052", "FF053", "FF054", "FF055", "FF057", "FF070", "FF071", "FF072")
#: After so many misfits only the causes found so far are tried on the rest.
_MAX_DIAGNOSES = 64


def verify_checkpoint(
    checkpoint: Path, *, source: Path | None = None, progress: Progress | None = None
) -> VerifyReport:
    """Check ``checkpoint`` against every rule of :data:`fourfold.verify.RULES` and report.

    With ``source``, the unquantized model, values are compared to it; without, all that can be told without it is
    checked, and the report says which rules were skipped. Every tensor of the checkpoint is read once.

    Raises :class:`fourfold.errors.CheckpointError` when there is no such folder, a file cannot be read, or the
    source is no sound model; :class:`fourfold.errors.ModelError` when the source is no Gemma 4 mixture of experts.
    Whatever is wrong with the checkpoint itself is a finding. :class:`fourfold.errors.RuleError`, with the report of
    all others, when a rule failed itself.
    """
    try:
        return _Pass(open_checkpoint(checkpoint, source), progress or NoProgress()).run()
    except OSError as error:
        raise CheckpointError(f"{error.filename or checkpoint}: cannot be read ({error.strerror or error})") from None


class _Pass:
    def __init__(self, checkpoint: Checkpoint, progress: Progress) -> None:
        self._checkpoint, self._progress = checkpoint, progress
        self._skipped = {rule.id: reason for rule in RULES if (reason := _missing(checkpoint, rule))}
        self._looks = {
            rule.id: Look(rule.id, in_pieces=rule.phase is Phase.TENSOR)
            for rule in RULES
            if rule.id not in self._skipped
        }
        self._num_misfits = 0
        self._failed: dict[str, str] = {}
        self._first_failure: Exception | None = None

    def run(self) -> VerifyReport:
        checkpoint = self._checkpoint
        self._call(Phase.FOLDER, checkpoint)
        with TensorReader(checkpoint.path, checkpoint.folder.shards) as reader:
            try:
                self._read(reader)
            finally:
                if checkpoint.source is not None:
                    checkpoint.source.reader.close()
            reader.require_unchanged()
        self._call(Phase.END, checkpoint)
        looks = [self._looks[rule.id] for rule in sorted(RULES, key=lambda rule: rule.id) if rule.id in self._looks]
        report = VerifyReport(
            ok=not self._failed and not any(look.num_findings for look in looks if look.rule not in _DOUBTS),
            layout=checkpoint.layout.name if checkpoint.layout else None,
            scheme=scheme_text(checkpoint.schemes.values()),
            checked={look.rule: look.checked for look in looks},
            skipped=dict(sorted((self._skipped | self._failed).items())),
            findings=tuple(finding for look in looks for finding in look.findings),
            num_findings={look.rule: look.num_findings for look in looks if look.num_findings},
            num_transformed=len(checkpoint.factors),
            warnings=loader_warnings(checkpoint),
            bytes_read=reader.bytes_read,
        )
        if self._failed:
            rule, reason = next(iter(self._failed.items()))
            others = f", and {len(self._failed) - 1} more rules" if len(self._failed) > 1 else ""
            raise RuleError(
                f"{checkpoint.path}: rule {rule} {reason}{others}; that is a fault of Fourfold's, please report it; "
                "what the other rules found holds",
                report,
            ) from self._first_failure
        return report

    def _call(self, phase: Phase, subject: Any) -> None:
        for rule in RULES:
            if rule.phase is phase and rule.id in self._looks:
                self._check(rule, subject)

    def _check(self, rule: Rule, subject: Any) -> None:
        """Let a rule look; its own failure costs no other rule's findings, and is raised when all have looked."""
        try:
            rule.check(self._looks[rule.id], subject)
        except (FourfoldError, OSError, MemoryError):
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the other findings must not be lost
            self._failed.setdefault(rule.id, f"failed: {type(error).__name__}: {printable(str(error))}")
            self._first_failure = self._first_failure or error

    def _read(self, reader: TensorReader) -> None:
        units = list(self._checkpoint.units())
        self._progress.begin("verify", total=sum(stored_bytes(parts) for _, parts in units), unit="B")
        for name, parts in units:
            if "" in parts:
                if stored_bytes(parts) <= _MAX_PLAIN_BYTES:
                    self._plain(reader, parts[""])
            elif stored_bytes(parts) <= _MAX_MODULE_BYTES:
                self._module(reader, name, parts)
            self._progress.advance(stored_bytes(parts))

    def _plain(self, reader: TensorReader, entry: StoredTensor) -> None:
        step = _PIECE_BYTES // DTYPE_BYTES[entry.dtype]
        for first in range(0, entry.numel, step):
            value = reader.read_span(entry, first, min(step, entry.numel - first))
            self._call(Phase.TENSOR, PlainTensor(self._checkpoint, entry, first, value))
            if value.numel() == entry.numel:
                note_norm(self._checkpoint, entry, value)
            if entry.name in self._checkpoint.kv_names and is_kv_scale(entry):
                self._checkpoint.kv_scales[entry.name] = float(value[0])

    def _module(self, reader: TensorReader, name: str, parts: Mapping[str, StoredTensor]) -> None:
        values = {part: reader.read(entry) for part, entry in parts.items()}
        view = ModuleView(self._checkpoint, name, dict(parts), values)
        self._checkpoint.scalars[name] = Scalars(view.scalar(PARTS[2]), view.scalar(PARTS[3]), view.row_norm)
        before = self._num_damages()
        self._call(Phase.MODULE, view)
        if self._checkpoint.source is None:
            return
        if view.factors is not None:
            self._checkpoint.factors[name] = view.factors
        fit = view.fit
        if fit is not None:
            self._count_misfit_rules()
            if fit.error > MAX_TENSOR_ERROR and self._num_damages() == before:
                self._explain(Misfit(view))

    def _num_damages(self) -> int:
        return sum(self._looks[rule].num_findings for rule in _DAMAGES if rule in self._looks)

    def _count_misfit_rules(self) -> None:
        """A module that fits passes every misfit rule at once: that is what they have looked at."""
        for rule in _MISFIT_RULES:
            self._looks[rule.id].count()

    def _explain(self, misfit: Misfit) -> None:
        self._num_misfits += 1
        for rule in _MISFIT_RULES:
            look = self._looks[rule.id]
            last = rule is _MISFIT_RULES[-1]
            if self._num_misfits > _MAX_DIAGNOSES and not look.num_findings and not last:
                continue
            before = look.num_findings
            self._check(rule, misfit)
            if look.num_findings > before:
                return


_DOUBTS = frozenset(rule.id for rule in RULES if rule.is_doubt)
_MISFIT_RULES = tuple(sorted((rule for rule in RULES if rule.phase is Phase.MISFIT), key=lambda rule: rule.rank))


def _missing(checkpoint: Checkpoint, rule: Rule) -> str:
    """Why a rule cannot look at this checkpoint; empty when it can."""
    there = {
        Need.SOURCE: checkpoint.source is not None,
        Need.MANIFEST: checkpoint.manifest is not None,
        Need.MODEL: checkpoint.gemma is not None,
        Need.LAYOUT: checkpoint.layout is not None,
        Need.CONFIG: bool(checkpoint.config),
    }
    return "; ".join(str(need) for need in rule.needs if not there[need])
