"""No check is for show: each one catches a planted fault, by its words, and passes over a sound backend."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fourfold.conformance import CHECKS, Refusal, Subject, Verdict, run_check, run_checks
from fourfold.conformance.model import make_model
from fourfold.plugins import Role

Q, U, E = Role.QUANTIZER, Role.UNFUSER, Role.EXPORTER
#: (role, entry, check, part of the message)
FAULTS = [
    (E, "heavy", "registering_imports_nothing_heavy", "registering imports .*torch"),
    (Q, "Two Words", "entry_describes_itself", "use lower-case letters"),
    (Q, "two-lines", "entry_describes_itself", "summary is not one line"),
    (Q, "opentoall", "options_are_frozen_and_closed", "accepts what it must refuse under quantizer.no-such-option"),
    (Q, "thawed", "options_are_frozen_and_closed", "options must stay frozen"),
    (Q, "takesanything", "bad_values_are_refused_by_path", "must refuse under quantizer.anything"),
    (Q, "otherinjson", "options_survive_json", "read back from JSON are .*steps=2"),
    (Q, "noquantizer", "implementation_fills_the_role", "faulty_parts:NoQuantizer: is no Quantizer"),
    (Q, "anyalgorithm", "unknown_algorithm_is_refused", "must refuse under quantizer.algorithm"),
    (Q, "soundquantizer", "refusals_come_first", "accepts what it was to refuse with 'no W4A4'"),
    (Q, "refuseslate", "accepted_work_finishes", "W4A4 with KV cache none behind unfuser 'reference' was accepted"),
    (Q, "nokvscales", "accepted_work_finishes", r"left out model.*self_attn \(2 missing\)"),
    (Q, "leavesoneout", "every_target_is_written", r"the quantizer left out .* \(48 missing\)"),
    (Q, "onescheme", "schemes_may_differ", "accepts weights_only, then fails: .*_proj: scheme W4A16 has none"),
    (Q, "nanblockscale", "scales_are_usable", "a block scale is not finite"),
    (Q, "zeroblockscale", "scales_are_usable", "a block scale is zero above codes that are not"),
    (Q, "ownscales", "scale_groups_share", "its modules have different global_scale"),
    (Q, "wrongsigns", "decoded_weights_are_close", r"decodes (1\.9|2\.0)\d+ from its source"),
    (Q, "unseeded", "same_seed_same_bytes", "two runs with one seed differ in manifest.json, model.*safetensors"),
    (Q, "countstoofew", "expert_tokens_are_counted", "8 routed tokens recorded, 512 were routed"),
    (Q, "countsnothing", "expert_tokens_are_counted", "0 expert token counts recorded, not 8"),
    (Q, "hidesrare", "rare_experts_are_not_hidden", "fewer than 505 tokens, and no fallback recorded"),
    (Q, "ignoreserrorrule", "rare_experts_are_not_hidden", "rule error let rare experts pass"),
    (U, "swapsgateandup", "experts_become_named_linears", "gate_proj: its weight is not the source's"),
    (U, "swapsgateandup", "outputs_are_equal", "unfuse changes the logits: relative difference"),
    (U, "neverfuses", "fuse_is_the_inverse", "fuse leaves other tensors"),
    (U, "forgetschanges", "changes_are_carried_back", "changes of one expert's linear were not carried back"),
    (U, "takesstrangers", "strangers_are_refused", "accepts a model without fused experts"),
    (E, "changesnorm", "kept_tensors_are_untouched", "norm.*: not the artifact's bytes"),
    (E, "losesnorm", "kept_tensors_are_untouched", "norm.*: missing from the checkpoint"),
    (E, "changescode", "codes_and_block_scales_are_untouched", "packed_weight: not the artifact's bytes"),
    (E, "changesblockscale", "codes_and_block_scales_are_untouched", "block_scale: not the artifact's bytes"),
    (E, "doublesglobalscale", "stored_values_are_equal", "1 tensors differ from the artifact"),
    (E, "emptiesignore", "verifier_finds_nothing", r"findings: FF\d+"),
    (E, "losestokenizer", "side_files_are_the_sources", "tokenizer.json: left behind"),
    (E, "losesconfigkey", "side_files_are_the_sources", "config.json: changed or lost architectures"),
    (E, "writesintoartifact", "only_the_destination_is_written", "changed the artifact"),
    (E, "makesfolder", "only_the_destination_is_written", "extra: not a plain file"),
    (E, "stampstime", "same_artifact_same_bytes", "two exports differ in config.json"),
]  # fmt: skip


@pytest.fixture(autouse=True)
def faulty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "faulty"))


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("conformance") / "model")


def make_subject(role: Role, name: str, work: Path, model: Path) -> Subject:
    subject = Subject(
        plugin="faulty_heavy" if name == "heavy" else "faulty_hooks",
        role=role,
        name=name,
        work=work,
        refusals=(Refusal(message="no W4A4"),) if role is Q else (),
    )
    # one model for all subjects, instead of one each
    subject.__dict__["model_path"] = Path(shutil.copytree(model, work / "model"))
    return subject


@pytest.mark.parametrize(("role", "name", "check", "message"), FAULTS, ids=[f"{f[1]}-{f[2]}" for f in FAULTS])
def test_a_planted_fault_is_caught(role: Role, name: str, check: str, message: str, tmp_path: Path, model: Path):
    subject = make_subject(role, name, tmp_path, model)
    (function,) = (c for c in CHECKS[role] if c.__name__ == check)
    outcome = run_check(function, subject)
    assert outcome.verdict is Verdict.BROKEN, outcome
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(outcome.message)


def test_every_check_has_a_planted_fault():
    caught = {fault[2] for fault in FAULTS}
    assert {check.__name__ for checks in CHECKS.values() for check in checks} == caught


@pytest.mark.parametrize(("role", "name"), [(Q, "soundquantizer"), (E, "soundexporter")])
def test_the_sound_twin_of_the_faulty_ones_breaks_nothing(role: Role, name: str, tmp_path: Path, model: Path):
    subject = make_subject(role, name, tmp_path, model)
    broken = {o.check: o.message for o in run_checks(subject) if o.verdict is Verdict.BROKEN}
    broken.pop("refusals_come_first", None)  # declared on purpose, to be broken
    assert broken == {}
