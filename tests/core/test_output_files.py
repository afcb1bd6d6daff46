"""Files that commands write: whole or not at all, in folders that are made, and refused before the work begins."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from core.report.measured import write_everything
from fourfold.checkpoint.atomic import atomic_file, require_writable, write_whole
from fourfold.cli.app import app
from fourfold.cli.guard import guarded
from fourfold.demo import model_path
from fourfold.errors import OutputError

from .test_atomic_folder import WITHOUT_OVERRIDE


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_folders_are_made_and_a_failure_leaves_what_was_there(tmp_path):
    path = tmp_path / "new" / "folders" / "page.html"
    write_whole(path, "è\n")
    assert path.read_bytes() == "è\n".encode()
    with pytest.raises(KeyboardInterrupt), atomic_file(path) as stream:
        stream.write(b"half")
        raise KeyboardInterrupt
    full = re.escape(f"{path}: the disk is full; nothing was left half-written")
    with pytest.raises(OutputError, match=full), atomic_file(path) as stream:
        stream.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert path.read_bytes() == "è\n".encode()
    assert names(path.parent) == ["page.html"]


def test_a_links_target_is_replaced_and_a_pipe_is_written_to(tmp_path):
    target, link, pipe = tmp_path / "results" / "page.html", tmp_path / "link", tmp_path / "pipe"
    target.parent.mkdir()
    link.symlink_to(target)
    write_whole(link, "one")
    assert (link.is_symlink(), target.read_text()) == (True, "one")
    os.mkfifo(pipe)
    found: list[str] = []
    reader = threading.Thread(target=lambda: found.append(pipe.read_text()))
    reader.start()
    write_whole(pipe, "two")
    reader.join(timeout=20)
    assert (found, pipe.is_fifo()) == (["two"], True)
    write_whole(Path(os.devnull), "three")
    assert not Path(os.devnull).is_file()


def test_a_file_keeps_its_permissions_and_the_shells_own_is_written_to(tmp_path):
    page = tmp_path / "page.html"
    page.write_text("old")
    page.chmod(0o660)
    write_whole(page, "new")
    assert (page.read_text(), page.stat().st_mode & 0o777) == ("new", 0o660)
    code = "from pathlib import Path; from fourfold.checkpoint.atomic import write_whole"
    code += "\nprint('before', flush=True); write_whole(Path('/dev/stdout'), 'page\\n'); print('after')"
    with (tmp_path / "out.txt").open("wb") as shell:
        subprocess.run([sys.executable, "-c", code], stdout=shell, check=True)
    assert (tmp_path / "out.txt").read_text().splitlines() == ["before", "page", "after"]


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    path, texts = tmp_path / "results.json", [letter * 10_000 for letter in "ab"]
    errors: list[Exception] = []

    def write(text: str) -> None:
        try:
            for _ in range(30):
                write_whole(path, text)
        except OutputError as error:
            errors.append(error)

    writers = [threading.Thread(target=write, args=(text,)) for text in texts]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert errors == []
    assert path.read_text() in texts
    assert names(tmp_path) == ["results.json"]


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("file/page.html", r"file/page\.html: \S*/file is a file, not a folder; choose another place"),
        ("file/below/page.html", r"file/below/page\.html: \S*/file is a file, not a folder; choose another place"),
        ("folder", r"folder: is a folder; name a file, such as \S*folder/NAME"),
        ("folder/" + "n" * 300, "n: File name too long"),
    ],
)
def test_what_can_be_no_file_is_refused(tmp_path, place, message):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match=message):
        require_writable(tmp_path / place)
    with pytest.raises(OutputError, match=message):
        write_whole(tmp_path / place, "text")
    assert names(tmp_path) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() != 0, reason="takes a capability from root; others never had it")
@pytest.mark.parametrize("what", ["folder", "file"])
def test_missing_permission_is_told_with_its_place(tmp_path, what):
    place = tmp_path / "folder" / "page.html"
    place.parent.mkdir()
    place.write_text("mine")
    refused = place.parent if what == "folder" else place
    refused.chmod(0o555)
    script = """
import sys
from pathlib import Path
from fourfold.checkpoint.atomic import require_writable
from fourfold.errors import OutputError
try:
    require_writable(Path(sys.argv[1]))
except OutputError as error:
    print(error)
"""
    result = subprocess.run(
        [*WITHOUT_OVERRIDE, sys.executable, "-c", script, place], capture_output=True, text=True, check=True
    )
    assert result.stdout == f"{place}: {refused} cannot be written; choose another place or mend its permissions\n"


@pytest.mark.parametrize(
    "command",
    [
        ["compare", "nowhere", "nowhere", "--html", "{}"],
        ["bench", "nowhere", "--output", "{}"],
        ["sensitivity", "nowhere", "--output", "{}"],
    ],
    ids=lambda command: command[0],
)
def test_commands_that_work_long_refuse_an_output_first(tmp_path, command):
    """Their models are not even looked for."""
    (tmp_path / "file").write_text("mine")
    output = tmp_path / "file" / "out.json"
    result = CliRunner().invoke(app, [word.replace("{}", str(output)) for word in command])
    assert result.exit_code == 2
    assert result.stderr == f"fourfold: {output}: {tmp_path}/file is a file, not a folder; choose another place\n"


def test_a_page_of_equal_folders_goes_into_a_folder_that_is_made(tmp_path):
    page = tmp_path / "pages" / "demo" / "x.html"
    result = CliRunner().invoke(app, ["compare", str(model_path()), str(model_path()), "--html", str(page)])
    assert result.exit_code == 0, result.stderr
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert names(page.parent) == ["x.html"]


@pytest.mark.parametrize("command", ["report", "card"])
def test_reports_and_cards_that_cannot_be_written_are_one_line(tmp_path, command):
    write_everything(tmp_path / "run")
    (tmp_path / "file").write_text("mine")
    result = CliRunner().invoke(app, [command, str(tmp_path / "run"), "--output", str(tmp_path / "file" / "out")])
    assert result.exit_code == 2
    assert re.fullmatch(
        rf"fourfold: {tmp_path}/file/out\S*: {tmp_path}/file is a file, not a folder; .*\n", result.stderr
    )


def test_a_full_disk_is_no_traceback_whatever_was_written_and_a_fault_of_ours_is_one(capsys):
    def lack() -> int:
        Path("/dev/full").write_text("text")
        return 0

    def fault() -> int:
        Path("/nowhere").read_text()
        return 0

    with pytest.raises(typer.Exit) as ended:
        guarded(lack)()
    assert ended.value.exit_code == 2
    assert capsys.readouterr().err == "fourfold: the disk is full (No space left on device); free some of it\n"
    with pytest.raises(FileNotFoundError):
        guarded(fault)()


def test_the_folder_one_stands_in_may_be_the_output(tmp_path, monkeypatch):
    """Relative paths mean after its replacement what they meant before, and the shell is told what it cannot see."""
    quantized, converted = tmp_path / "quantized", tmp_path / "converted"
    for folder, command in (
        (quantized, ["quantize", "demo", "--quantizer", "reference", "--scheme", "W4A16"]),
        (converted, ["convert", "../quantized", "--layout", "compressed-tensors"]),
    ):
        folder.mkdir()
        monkeypatch.chdir(folder)
        result = CliRunner().invoke(app, [*command, "--output", "."])
        assert result.exit_code == 0, result.output
        assert result.stdout.splitlines()[-1] == "the folder you are in was made anew; cd . enters the new one"
        assert Path("manifest.json").samefile(folder / "manifest.json")
    assert names(tmp_path) == ["converted", "quantized"]
    result = CliRunner().invoke(app, ["convert", "../quantized", "--layout", "compressed-tensors", "--output", ".."])
    assert result.exit_code == 2
    assert result.stderr == f"fourfold: {tmp_path}: output folder is not empty; choose another or remove it\n"
