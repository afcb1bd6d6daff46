"""Which checks a role has, and running them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum

from fourfold.config import Config
from fourfold.conformance import exporters, quantizers, registration, unfusers
from fourfold.conformance.subject import ConformanceError, NotApplicable, Subject
from fourfold.plugins import Role

Check = Callable[[Subject], None]

_REGISTRATION: tuple[Check, ...] = (
    registration.registering_imports_nothing_heavy,
    registration.entry_describes_itself,
    registration.options_are_frozen_and_closed,
    registration.bad_values_are_refused_by_path,
    registration.options_survive_json,
    registration.implementation_fills_the_role,
)

#: Every check by role. Servers and benchmarks have those of registration.
CHECKS: dict[Role, tuple[Check, ...]] = {
    Role.UNFUSER: (
        *_REGISTRATION,
        unfusers.experts_become_named_linears,
        unfusers.outputs_are_equal,
        unfusers.fuse_is_the_inverse,
        unfusers.changes_are_carried_back,
        unfusers.strangers_are_refused,
    ),
    Role.QUANTIZER: (
        *_REGISTRATION,
        registration.unknown_algorithm_is_refused,
        quantizers.refusals_come_first,
        quantizers.accepted_work_finishes,
        quantizers.every_target_is_written,
        quantizers.schemes_may_differ,
        quantizers.scales_are_usable,
        quantizers.scale_groups_share,
        quantizers.decoded_weights_are_close,
        quantizers.same_seed_same_bytes,
        quantizers.expert_tokens_are_counted,
        quantizers.rare_experts_are_not_hidden,
    ),
    Role.EXPORTER: (
        *_REGISTRATION,
        exporters.kept_tensors_are_untouched,
        exporters.codes_and_block_scales_are_untouched,
        exporters.stored_values_are_equal,
        exporters.verifier_finds_nothing,
        exporters.side_files_are_the_sources,
        exporters.only_the_destination_is_written,
        exporters.same_artifact_same_bytes,
    ),
    Role.SERVER: _REGISTRATION,
    Role.BENCHMARK: _REGISTRATION,
}


class Verdict(StrEnum):
    """How a check ended."""

    KEPT = "kept"
    BROKEN = "broken"
    NOT_APPLICABLE = "not applicable"


class Outcome(Config):
    """One check; ``message`` says what is broken, or why the check has nothing to look at."""

    check: str
    verdict: Verdict
    message: str = ""


def run_check(check: Check, subject: Subject) -> Outcome:
    """One check. An exception that is no :class:`ConformanceError` is the backend's own, and breaks the check too."""
    name = check.__name__
    try:
        check(subject)
    except NotApplicable as reason:
        return Outcome(check=name, verdict=Verdict.NOT_APPLICABLE, message=str(reason))
    except ConformanceError as error:
        return Outcome(check=name, verdict=Verdict.BROKEN, message=str(error))
    except Exception as error:  # noqa: BLE001 - whatever a backend raises is its answer
        return Outcome(check=name, verdict=Verdict.BROKEN, message=f"{type(error).__name__}: {error}")
    return Outcome(check=name, verdict=Verdict.KEPT)


def run_checks(subject: Subject) -> Sequence[Outcome]:
    """All checks of the subject's role, in order."""
    return [run_check(check, subject) for check in CHECKS[subject.role]]
