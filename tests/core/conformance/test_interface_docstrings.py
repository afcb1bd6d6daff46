"""The minimal plugin in each interface's docstring is one: taken out, made a module, held to its promises."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from fourfold.conformance import Refusal
from fourfold.conformance.checks import CHECKS, Check, Verdict, run_check
from fourfold.conformance.subject import Subject
from fourfold.plugins import Role

NEEDS_ACTIVATIONS = (
    Refusal(recipe={"scheme": "W4A4"}, message="use scheme W4A16"),
    Refusal(recipe={"scheme": "W4A16", "kv_cache": "fp8"}, message="kv_cache none"),
)
#: Role -> the name its docstring's plugin registers, and what the suite has to be told about it.
PLUGINS: dict[Role, tuple[str, dict]] = {
    Role.UNFUSER: ("keep-fused", {"keeps_fused": True}),
    Role.QUANTIZER: ("weights-only", {"refusals": NEEDS_ACTIVATIONS}),
    Role.EXPORTER: ("plain", {}),
    Role.SERVER: ("elsewhere", {}),
    Role.BENCHMARK: ("says-hello", {}),
}
#: What these least plugins have nothing to show for.
NOTHING_TO_SHOW = {
    Role.UNFUSER: {"experts_become_named_linears", "changes_are_carried_back"},
    Role.QUANTIZER: {"schemes_may_differ", "expert_tokens_are_counted", "rare_experts_are_not_hidden"},
}


def code_of(role: Role) -> str:
    """The indented block after "A whole minimal plugin" in the interface's docstring."""
    text = inspect.getdoc(importlib.import_module(f"fourfold.interfaces.{role.value}"))
    assert text is not None
    found = re.search(r"A whole minimal plugin[^\n]*::\n\n((?:    [^\n]*\n|\n)+)", text + "\n")
    assert found, f"no minimal plugin in {role.value}.py"
    return textwrap.dedent(found[1])


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """All five as importable modules, ``plugin_ROLE``."""
    folder = tmp_path_factory.mktemp("modules")
    for role in PLUGINS:
        code = code_of(role)
        assert "my_plugin:" in code
        (folder / f"plugin_{role.value}.py").write_text(code.replace("my_plugin:", f"plugin_{role.value}:"))
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


@pytest.fixture(scope="module")
def subjects(modules: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Role, Subject]:
    return {
        role: Subject(
            plugin=f"plugin_{role.value}", role=role, name=name, work=tmp_path_factory.mktemp(role.value), **facts
        )
        for role, (name, facts) in PLUGINS.items()
    }


def test_every_role_has_one():
    assert set(PLUGINS) == set(Role) == set(CHECKS)


@pytest.mark.parametrize(
    ("role", "check"),
    [(role, check) for role in PLUGINS for check in CHECKS[role]],
    ids=lambda value: value.__name__ if callable(value) else value.value,
)
def test_it_keeps_the_roles_promises(role: Role, check: Check, subjects: dict[Role, Subject]):
    outcome = run_check(check, subjects[role])
    expected = Verdict.NOT_APPLICABLE if check.__name__ in NOTHING_TO_SHOW.get(role, ()) else Verdict.KEPT
    assert outcome.verdict is expected, outcome.message
