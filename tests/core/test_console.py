"""What commands print of others' text: as it is, never as markup, and nothing that acts on the terminal."""

from __future__ import annotations

import io
import sys

import pytest

from fourfold.cli.console import print_table, progress_bar, say

FOREIGN = "list[int] [red] [/INST] :smile: \x1b[31m\x07"
SHOWN = "list[int] [red] [/INST] :smile: \\x1b[31m\\x07"


def test_a_table_shows_brackets_as_they_are(capsys):
    print_table(f"title {FOREIGN}", ("a", f"head {FOREIGN}"), [("row", f"cell {FOREIGN}")])
    printed = capsys.readouterr().out
    for part in ("title", "head", "cell"):
        assert f"{part} {SHOWN}" in printed
    assert "\x1b" not in printed


def test_what_is_said_keeps_its_lines_and_nothing_else_acts(capsys):
    say(f"one {FOREIGN}\ntwo")
    assert capsys.readouterr().out == f"one {SHOWN}\ntwo\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("terminal", [True, False], ids=["bar", "lines"])
def test_tasks_and_notes_are_shown_as_they_are(monkeypatch, terminal):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with progress_bar(quiet=False) as progress:
        progress.begin(f"task {FOREIGN}", total=1, unit="prompt")
        progress.advance()
        progress.note(f"said {FOREIGN}")
    for part in ("task", "note: said"):
        assert f"{part} {SHOWN}" in stream.getvalue()
    assert "\x1b[31m" not in stream.getvalue()
