"""Finished stages by the hash of all that decided them; a finished one is not run again.

A stage's folder is ``NAME-<first 16 hex digits>`` and holds ``stage.json`` with the whole identity and the sha256 of
every file, written last and renamed into place with the folder. What was interrupted has no such folder.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from fourfold.checkpoint.atomic import atomic_folder, explain_os_error
from fourfold.checkpoint.index import read_json
from fourfold.errors import CheckpointError
from fourfold.manifest import sha256_paths

RECORD_FILE = "stage.json"


class StageStore:
    """A folder of finished stages."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def alone(self, name: str, identity: Mapping[str, object], waits: Callable[[], None]) -> Iterator[None]:
        """Hold a stage for this process. Another run of the very same one calls ``waits``, waits, then can find it.

        The system lets go of a killed process's hold.
        """
        folder = self._folder(name, identity)
        lock = folder.with_name(f".{folder.name}.lock")
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            stream = lock.open("a")
        except OSError as error:
            raise explain_os_error(error, lock.parent) from error
        with stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waits()
                fcntl.flock(stream, fcntl.LOCK_EX)
            yield

    def find(self, name: str, identity: Mapping[str, object]) -> Path | None:
        """The finished stage's folder if its files are still what they were; a damaged one is removed."""
        folder = self._folder(name, identity)
        if not folder.is_dir():
            return None
        try:
            record = read_json(folder / RECORD_FILE)
            files = record["files"]
            whole = list(sha256_paths(folder / file for file in files)) == list(files.values())
        except (CheckpointError, OSError, KeyError, TypeError, AttributeError):
            whole = False
        if not whole:
            try:
                shutil.rmtree(folder)
            except OSError as error:
                raise explain_os_error(error, folder) from error
            return None
        return folder

    @contextmanager
    def create(self, name: str, identity: Mapping[str, object]) -> Iterator[tuple[Path, Path]]:
        """Yield the temporary folder to fill and the folder it becomes."""
        final = self._folder(name, identity)
        with atomic_folder(final) as partial:
            yield partial, final
            paths = [p for p in sorted(partial.rglob("*")) if p.is_file()]
            digests = zip(paths, sha256_paths(paths), strict=True)
            files = {str(path.relative_to(partial)): digest for path, digest in digests}
            text = json.dumps({"name": name, "identity": dict(identity), "files": files}, indent=1, sort_keys=True)
            (partial / RECORD_FILE).write_text(text + "\n", encoding="utf-8")

    def log(self, name: str, identity: Mapping[str, object]) -> Path:
        """Where the stage's process may write its log; stages that run at the same time have one each."""
        return self._folder(name, identity).with_suffix(".log")

    def _folder(self, name: str, identity: Mapping[str, object]) -> Path:
        text = json.dumps({"name": name, "identity": dict(identity)}, sort_keys=True, separators=(",", ":"))
        return self.folder / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
