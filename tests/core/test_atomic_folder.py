"""Folders that appear whole or not at all, and what is said of one that does not."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fourfold.checkpoint.atomic import atomic_folder, partial_of, require_space
from fourfold.errors import OutputError

#: Root without the capability that lets it pass by permissions: what any owner of the folders is.
WITHOUT_OVERRIDE = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search")


def test_a_failed_block_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "out") as partial:
        (partial / "half").write_text("x")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_another_run_writes_is_refused_and_left_alone(tmp_path):
    message = "out: another run is writing it; wait for it, or choose another --output"
    with atomic_folder(tmp_path / "out") as partial:
        (partial / "mine").write_text("x")
        with pytest.raises(OutputError, match=message), atomic_folder(tmp_path / "out"):
            pytest.fail("entered")
        assert (partial / "mine").exists()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_full_disk_and_taken_folder_are_explained(tmp_path):
    with (
        pytest.raises(OutputError, match="the disk is full; nothing was left half-written"),
        atomic_folder(tmp_path / "out"),
    ):
        raise OSError(28, "No space left on device")
    with pytest.raises(OutputError, match=r"needs 1000000.00 GB of disk, .* are free there"):
        require_space(tmp_path / "out", 10**15)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("")
    with (
        pytest.raises(OutputError, match="output folder is not empty; choose another or remove it"),
        atomic_folder(tmp_path / "out"),
    ):
        pytest.fail("entered")
    assert (tmp_path / "out" / "mine").exists()


def test_a_place_elsewhere_that_the_system_refuses_is_named(tmp_path):
    """Not the folder that is being made, in which nothing is wrong."""
    missing = tmp_path / "model" / "model.safetensors"
    message = f"{missing}: No such file or directory, so {tmp_path / 'out'} was not made; mend that and run the same"
    with pytest.raises(OutputError, match=re.escape(message)), atomic_folder(tmp_path / "out"):
        missing.read_bytes()
    below = f"{tmp_path / 'out'}: No such file or directory"
    with pytest.raises(OutputError, match=f"^{re.escape(below)}$"), atomic_folder(tmp_path / "out") as partial:
        (partial / "absent").read_bytes()


@pytest.mark.skipif(os.geteuid() != 0, reason="takes a capability from root; others never had it")
def test_a_left_over_that_may_not_be_removed_is_named(tmp_path):
    left = tmp_path / ".out.partial"
    left.mkdir()
    (left / "half").write_text("")
    left.chmod(0o555)
    script = """
import sys
from pathlib import Path
from fourfold.checkpoint.atomic import atomic_folder
from fourfold.errors import OutputError
try:
    with atomic_folder(Path(sys.argv[1])):
        pass
except OutputError as error:
    print(error)
"""
    result = subprocess.run(
        [*WITHOUT_OVERRIDE, sys.executable, "-c", script, tmp_path / "out"], capture_output=True, text=True, check=True
    )
    assert result.stdout == f"{left}: cannot be written (Permission denied)\n"


@pytest.mark.parametrize("held", [False, True], ids=["nobody's", "another run's"])
def test_an_interruption_before_a_folder_is_held_leaves_what_another_run_holds(tmp_path, monkeypatch, held):
    """Ctrl-C just after the folder was made."""
    partial, mkdir = partial_of(tmp_path / "out"), Path.mkdir
    with contextlib.ExitStack() as other:

        def make_and_interrupt(self: Path, **options: object) -> None:
            mkdir(self, **options)
            if held:
                descriptor = os.open(self, os.O_RDONLY)
                other.callback(os.close, descriptor)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            raise KeyboardInterrupt

        monkeypatch.setattr(Path, "mkdir", make_and_interrupt)
        with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "out"):
            pass
    assert partial.exists() is held
