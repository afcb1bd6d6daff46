"""A rule that fails itself is a fault of ours: it is raised, and costs no other rule's findings."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable

import pytest
from typer.testing import CliRunner

from fourfold.checkpoint.layouts import MODELOPT
from fourfold.cli.app import app
from fourfold.errors import RuleError
from fourfold.verify import RULES, engine, verify_checkpoint
from fourfold.verify.rule import Look, Phase, Rule

from .good_checkpoints import TEXT, Editable, Variant

NAME = f"{TEXT}.0.layer_scalar"


def fail(look: Look, subject: object) -> None:
    look.count()
    raise ZeroDivisionError("division\nby zero")


@pytest.fixture
def broken_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule that fails, before all others."""
    broken = Rule(id="FF000", phase=Phase.FOLDER, check=fail, title="", why="")
    monkeypatch.setattr(engine, "RULES", (broken, *RULES))


@pytest.mark.usefixtures("broken_rule")
def test_other_rules_findings_are_kept(editable: Callable[..., Editable]) -> None:
    checkpoint = editable(Variant(MODELOPT.name))
    checkpoint.tensors[NAME].zero_()
    with pytest.raises(
        RuleError, match=r"rule FF000 failed: ZeroDivisionError: .*fault of Fourfold's, please"
    ) as caught:
        verify_checkpoint(checkpoint.save())
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert str(caught.value).isprintable()
    report = pickle.loads(pickle.dumps(caught.value)).report
    assert [finding.rule for finding in report.findings] == ["FF093"]
    assert report.skipped["FF000"].startswith("failed: ZeroDivisionError")

    shown = CliRunner().invoke(app, ["verify", str(checkpoint.folder)])
    assert shown.exit_code == 2
    assert f"FF093 {NAME}" in shown.stdout
    assert "rule FF000 failed" in shown.stderr


@pytest.mark.usefixtures("broken_rule")
def test_nothing_is_called_verified(editable: Callable[..., Editable]) -> None:
    folder = editable(Variant(MODELOPT.name)).folder
    shown = CliRunner().invoke(app, ["verify", str(folder)])
    assert shown.exit_code == 2
    assert "not verified, though nothing was found" in shown.stdout
    document = CliRunner().invoke(app, ["verify", str(folder), "--json"])
    assert document.exit_code == 2
    assert json.loads(document.stdout)["ok"] is False
