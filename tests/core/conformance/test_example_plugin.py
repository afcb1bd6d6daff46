"""The example plugin as an installed distribution, and installed plugins that must fail loudly."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "tests" / "example_plugin"
DOCS = ROOT / "docs" / "writing-a-backend.md"
GOOD_HOOKS = (EXAMPLE / "src" / "fourfold_clipped" / "hooks.py").read_text(encoding="utf-8")


def install(folder: Path, project: Path = EXAMPLE) -> Path:
    """Put a project into ``folder`` as an installer does: its package, and its metadata with the entry points.

    Written by hand, since a build backend is not among what the tests need.
    """
    metadata = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for package in (project / "src").iterdir():
        shutil.copytree(package, folder / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    info = folder / f"{metadata['name'].replace('-', '_')}-{metadata['version']}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.4\nName: {metadata['name']}\nVersion: {metadata['version']}\n", encoding="utf-8"
    )
    points = "".join(f"{name} = {value}\n" for name, value in metadata["entry-points"]["fourfold"].items())
    (info / "entry_points.txt").write_text(f"[fourfold]\n{points}", encoding="utf-8")
    return folder


def fourfold(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from fourfold.cli.app import main; main()", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": str(folder)}
    )


def write_plugin(project: Path, hooks: str, name: str = "broken") -> Path:
    """A project with one module of hooks."""
    package = project / "src" / f"fourfold_{name}"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "hooks.py").write_text(hooks)
    (project / "pyproject.toml").write_text(
        f'[project]\nname = "fourfold-{name}"\nversion = "1"\n'
        f'[project.entry-points.fourfold]\n{name} = "fourfold_{name}.hooks"\n'
    )
    return project


def test_an_installed_plugin_is_listed(tmp_path: Path):
    listed = fourfold(install(tmp_path), "backends", "--json")
    assert listed.returncode == 0, listed.stderr
    (clipped,) = (b for b in json.loads(listed.stdout)["backends"] if b["name"] == "clipped")
    assert (clipped["role"], clipped["environment"], clipped["state"]) == ("quantizer", None, "ready")
    assert clipped["options"]["clip_ratio"]["default"] == 0.9


def test_a_study_may_name_an_installed_plugin(tmp_path: Path):
    study = tmp_path / "study.toml"
    study.write_text(
        'name = "s"\nsummary = "s"\nmodel = "no/model"\n[recipe]\nscheme = "W4A16"\n'
        '[matrix]\nquantizers = [{ name = "clipped", algorithm = "clip" }]\nlayouts = ["modelopt"]\n'
    )
    folder = install(tmp_path / "site")
    assert fourfold(folder, "study", "validate", str(study)).returncode == 0
    study.write_text(study.read_text().replace("W4A16", "W4A4"))
    refused = fourfold(folder, "study", "validate", str(study))
    assert refused.returncode == 2
    assert "clipped-clip.default.modelopt: quantizer 'clipped' reads no activations" in refused.stderr


def test_without_it_the_name_is_unknown(tmp_path: Path):
    refused = fourfold(tmp_path, "quantize", "demo", "--quantizer", "clipped", "--output", str(tmp_path / "out"))
    assert refused.returncode == 2
    assert "unknown quantizer 'clipped'; known: llmcompressor, modelopt, reference" in refused.stderr


@pytest.mark.parametrize(
    ("hooks", "message"),
    [
        ("import no_such_module\n", r"plugin 'broken' of fourfold-broken cannot be imported "
         r"\(fourfold_broken\.hooks\): ModuleNotFoundError: No module named 'no_such_module'; "
         r"repair or uninstall fourfold-broken"),
        (GOOD_HOOKS.replace("fourfold_register_quantizers", "fourfold_register_quantisers"),
         r"plugin refused: .*unknown hook 'fourfold_register_quantisers' in plugin"),
        (GOOD_HOOKS.replace('name="clipped"', 'name="reference"'),
         r"plugin 'broken': a quantizer named 'reference' is already registered"),
        (GOOD_HOOKS.replace("QuantizerEntry(\n", "dict(\n"),
         r"plugin 'broken': fourfold_register_quantizers returned .*, not a QuantizerEntry"),
    ],
    ids=["import-error", "misspelt-hook", "name-twice", "no-entry"],
)  # fmt: skip
def test_a_faulty_plugin_fails_loudly(hooks: str, message: str, tmp_path: Path):
    folder = install(tmp_path / "site")  # its options model is what the variants import
    (folder / "fourfold_clipped-0.1.0.dist-info" / "entry_points.txt").write_text("[fourfold]\n")
    install(folder, write_plugin(tmp_path / "project", hooks))
    refused = fourfold(folder, "backends", "--json")
    assert refused.returncode == 2
    assert re.search(message, refused.stderr), refused.stderr
    assert refused.stdout == ""
    assert "Traceback" not in refused.stderr


def test_the_page_shows_the_files_as_they_are():
    page = DOCS.read_text(encoding="utf-8")
    shown = dict(re.findall(r"^`([\w./]+)`:\n\n```\w+\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL))
    files = {
        str(path.relative_to(EXAMPLE)): path.read_text(encoding="utf-8")
        for path in sorted(EXAMPLE.rglob("*"))
        if path.suffix in (".py", ".toml") and path.name not in ("__init__.py", "conftest.py")
    }
    assert shown == files
