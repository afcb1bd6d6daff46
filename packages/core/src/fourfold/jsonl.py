"""JSON Lines: one reader of users' files, and files of ours that grow by a line at a time."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from fourfold.checkpoint.atomic import explained, make_folder
from fourfold.errors import FourfoldError


def read_lines(path: Path, error: type[FourfoldError]) -> Iterator[tuple[str, str]]:
    """The lines that are not blank, each with its place for messages, ``FILE:LINE``.

    A line ends at a newline alone: whatever else separates lines in Unicode is text, and a byte order mark is none.
    Raises ``error`` for a line that is not UTF-8.
    """
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            where = f"{path}:{number}"
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as wrong:
                byte = f"byte 0x{line[wrong.start]:02x} at column {wrong.start + 1}"
                raise error(f"{where}: not UTF-8 ({byte})") from None
            if text.strip():
                yield where, text.rstrip("\r\n")


def read_objects(path: Path, error: type[FourfoldError]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a file of JSON Lines, each with its place; raises ``error`` for a line that holds none."""
    for where, line in read_lines(path, error):
        try:
            record = json.loads(line)
        except ValueError as wrong:
            reason = f"{wrong.msg} at column {wrong.colno}" if isinstance(wrong, json.JSONDecodeError) else str(wrong)
            raise error(f"{where}: not valid JSON ({reason})") from None
        if not isinstance(record, dict):
            raise error(f"{where}: a {type(record).__name__}, where an object is expected")
        yield where, record


class GrowingFile:
    """Lines that are appended one by one and given to the operating system at once: a crash tears the last at most."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stream: IO[bytes] | None = None

    def read(self) -> Iterator[tuple[str, bytes]]:
        """Each line with its place. A torn last one is cut off in the end, or the next would be glued to it."""
        if not self.path.exists():
            return
        whole, newline, torn = self.path.read_bytes().rpartition(b"\n")
        for number, line in enumerate(whole.split(b"\n") if newline else (), start=1):
            yield f"{self.path}:{number}", line
        if torn:
            with explained(self.path):
                os.truncate(self.path, len(whole) + len(newline))

    def append(self, line: str) -> None:
        """Add a line, whole or not at all; :class:`fourfold.errors.OutputError` says why it cannot be."""
        with explained(self.path):
            if self._stream is None:
                make_folder(self.path.parent)
                # Without a buffer, which would hold back what a full disk refuses, and try again as it is closed.
                self._stream = self.path.open("ab", buffering=0)
            begin, rest = self._stream.tell(), f"{line}\n".encode()
            try:
                while rest:
                    rest = rest[self._stream.write(rest) :]
            except OSError:
                self._stream.truncate(begin)
                raise

    def close(self) -> None:
        """Close the file; what was appended stays."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None
