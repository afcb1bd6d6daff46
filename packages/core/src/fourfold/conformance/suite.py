"""The checks as pytest classes: subclass one a backend and set ``plugin`` and ``name``. Needs pytest.

Each check is one test; one that does not apply is skipped with its reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest

from fourfold.conformance.checks import CHECKS, Check, Verdict, run_check
from fourfold.conformance.subject import Refusal, Subject
from fourfold.plugins import Role


class _Conformance:
    """What the three classes share; the attributes are those of :class:`fourfold.conformance.Subject`."""

    role: ClassVar[Role]
    plugin: ClassVar[str]
    name: ClassVar[str]
    options: ClassVar[Mapping[str, Any]] = {}
    extra_plugins: ClassVar[tuple[str, ...]] = ()
    keeps_fused: ClassVar[bool] = False
    output_tolerance: ClassVar[float] = 0.0
    refusals: ClassVar[tuple[Refusal, ...]] = ()

    @pytest.fixture(scope="class")
    def subject(self, tmp_path_factory: pytest.TempPathFactory) -> Subject:
        """The backend under check; one for all tests of the class."""
        return Subject(
            plugin=self.plugin,
            role=self.role,
            name=self.name,
            work=tmp_path_factory.mktemp(self.name),
            options=self.options,
            extra_plugins=self.extra_plugins,
            keeps_fused=self.keeps_fused,
            output_tolerance=self.output_tolerance,
            refusals=self.refusals,
        )


def _judge(check: Check, subject: Subject) -> None:
    outcome = run_check(check, subject)
    if outcome.verdict is Verdict.NOT_APPLICABLE:
        pytest.skip(outcome.message)
    if outcome.verdict is Verdict.BROKEN:
        pytest.fail(outcome.message, pytrace=False)


def _each_check(role: Role) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("check", CHECKS[role], ids=lambda check: check.__name__)


class UnfuserConformance(_Conformance):
    """An unfuser's promises. Set ``keeps_fused`` where its quantizer handles fused experts."""

    role = Role.UNFUSER

    @_each_check(Role.UNFUSER)
    def test_conforms(self, check: Check, subject: Subject) -> None:
        """One promise."""
        _judge(check, subject)


class QuantizerConformance(_Conformance):
    """A quantizer's promises. List in ``refusals`` what it must refuse before it starts."""

    role = Role.QUANTIZER

    @_each_check(Role.QUANTIZER)
    def test_conforms(self, check: Check, subject: Subject) -> None:
        """One promise."""
        _judge(check, subject)


class ExporterConformance(_Conformance):
    """An exporter's promises; its keys must be those of a layout that Fourfold reads."""

    role = Role.EXPORTER

    @_each_check(Role.EXPORTER)
    def test_conforms(self, check: Check, subject: Subject) -> None:
        """One promise."""
        _judge(check, subject)
