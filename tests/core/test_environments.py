"""Environments: made once, by one run at a time, never taken half-made or from another record than the committed one.

A script stands for uv: what it installs is a folder, and it can be told to fail in the middle.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from fourfold.environments import ensure_environment, environment_sha256, python_of
from fourfold.errors import MissingEnvironmentError
from fourfold.plugins import Environment, Registry, build_plugin_manager
from fourfold.progress import NoProgress
from fourfold.versions import code_sha256

UV = """#!/bin/sh
case "$1" in
venv) rm -rf .venvs/toy ;;
pip)
    echo "$@" >> syncs
    mkdir -p .venvs/toy/bin .venvs/toy/lib/python3/site-packages/toy_toolchain
    touch .venvs/toy/bin/python
    sleep 0.3
    test ! -e fails || { echo "network is down" >&2; exit 1; } ;;
esac
"""
ENVIRONMENTS = Registry(build_plugin_manager()).environments()
TOY = Environment(name="toy", package="fourfold-toy", extras=("toolchain",), provides="toy_toolchain")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "uv").write_text(UV)
    (tmp_path / "uv").chmod(0o755)
    (tmp_path / "locks").mkdir()
    (tmp_path / "locks/toy.txt").write_text("toy==1.0\n")
    monkeypatch.setenv("UV", str(tmp_path / "uv"))
    monkeypatch.setattr("fourfold.environments.workspace_root", lambda: tmp_path)
    return tmp_path


def syncs(root: Path) -> int:
    return len((root / "syncs").read_text().splitlines())


def test_a_half_made_one_is_not_taken(root: Path):
    (root / "fails").touch()
    with pytest.raises(MissingEnvironmentError, match="uv pip sync failed: network is down"):
        ensure_environment(TOY, NoProgress())
    assert (root / ".venvs/toy/lib/python3/site-packages/toy_toolchain").is_dir()
    assert python_of(TOY) is None
    (root / "fails").unlink()
    assert ensure_environment(TOY, NoProgress()) == root / ".venvs/toy/bin/python"


def test_it_is_made_from_the_record_and_nothing_is_resolved(root: Path):
    ensure_environment(TOY, NoProgress())
    made = (root / "syncs").read_text().split()
    assert made == ["pip", "sync", "-q", "--python", str(root / ".venvs/toy"), str(root / "locks/toy.txt")]


def test_a_missing_record_is_named(root: Path):
    (root / "locks/toy.txt").unlink()
    with pytest.raises(MissingEnvironmentError, match=r"locks/toy\.txt: the committed record .* is missing"):
        ensure_environment(TOY, NoProgress())


@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=lambda environment: environment.name)
def test_records_are_what_the_members_ask_for(environment: Environment):
    """Who moves a version and forgets `setup --write-locks` is told here: records are installed as they are."""
    checkout = Path(__file__).parents[2]
    recorded = (checkout / "locks" / f"{environment.name}.txt").read_text()
    pinned = dict(re.findall(r"^([\w.-]+)==([^ ;\\]+)", recorded, flags=re.MULTILINE))
    members = re.findall(r"^-e (\S+)", recorded, flags=re.MULTILINE)
    assert len(members) == 2
    asked = []
    for member in members:
        project = tomllib.loads((checkout / member / "pyproject.toml").read_text())["project"]
        asked += project["dependencies"]
        if project["name"] == environment.package:
            asked += [line for extra in environment.extras for line in project["optional-dependencies"][extra]]
    wanted = [r for r in map(Requirement, asked) if r.name != "fourfold"]
    assert len(wanted) > 10
    assert [str(r) for r in wanted if not r.specifier.contains(pinned[canonicalize_name(r.name)])] == []


def test_it_is_made_again_when_the_record_moves(root: Path):
    ensure_environment(TOY, NoProgress())
    ensure_environment(TOY, NoProgress())
    assert syncs(root) == 1
    (root / "locks/toy.txt").write_text("toy==1.1\n")
    assert python_of(TOY) is None
    ensure_environment(TOY, NoProgress())
    assert syncs(root) == 2


def test_other_code_or_packages_give_another_hash(root: Path, monkeypatch: pytest.MonkeyPatch):
    member = root / "fourfold_toy"
    (member / "cli").mkdir(parents=True)
    (member / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(root)

    def changed(write: Callable[[], object]) -> bool:
        before = environment_sha256(TOY)
        write()
        code_sha256.cache_clear()
        return environment_sha256(TOY) != before

    assert changed(lambda: (member / "pack.py").write_text("x = 1"))
    assert changed(lambda: (member / "pack.py").write_text("x = 2"))
    assert changed(lambda: (member / "cli/show.py").write_text("print(1)"))
    with monkeypatch.context() as patch:
        # What shows results decides none, in Fourfold itself; of others nobody knows what their folders hold.
        patch.setattr("fourfold.versions._OWN", "fourfold_toy")
        code_sha256.cache_clear()
        assert not changed(lambda: (member / "cli/show.py").write_text("print(2)"))
    code_sha256.cache_clear()
    assert changed(lambda: (root / "locks/toy.txt").write_text("toy==1.1\n"))
    assert changed(lambda: (root / "locks/toy.txt").unlink())  # as with a wheel: what is installed counts


def test_one_made_by_hand_is_taken_as_it_is(root: Path):
    ensure_environment(TOY, NoProgress())
    (root / ".venvs/toy.made-from").unlink()
    assert python_of(TOY) is not None


def test_two_runs_make_it_once(root: Path):
    with ThreadPoolExecutor(2) as pool:
        pythons = [made.result() for made in [pool.submit(ensure_environment, TOY, NoProgress()) for _ in range(2)]]
    assert pythons == [root / ".venvs/toy/bin/python"] * 2
    assert syncs(root) == 1
