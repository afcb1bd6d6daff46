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
from contextlib import contextmanager, suppress
from pathlib import Path

from fourfold.checkpoint.atomic import atomic_folder, explain_os_error, hold_folder, make_folder
from fourfold.checkpoint.index import read_json
from fourfold.errors import CheckpointError
from fourfold.manifest import MANIFEST_FILE, Manifest, sha256_paths

RECORD_FILE = "stage.json"


class StageStore:
    """A folder of finished stages."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def of_one_run(self, output: Path) -> Iterator[None]:
        """Hold the whole folder for the run that writes ``output``; it is removed, still held, when that ends well.

        A run that fails leaves its finished stages. Raises :class:`fourfold.errors.OutputError` while another run holds
        the folder.
        """
        make_folder(self.folder)
        with hold_folder(self.folder, output):
            try:
                yield
            except BaseException:
                with suppress(OSError):  # it holds something, unless the run was refused before its first stage
                    self.folder.rmdir()
                raise
            shutil.rmtree(self.folder, ignore_errors=True)

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
            record = {"name": name, "identity": dict(identity), "files": _digests(partial)}
            text = json.dumps(record, indent=1, sort_keys=True)
            (partial / RECORD_FILE).write_text(text + "\n", encoding="utf-8")

    def log(self, name: str, identity: Mapping[str, object]) -> Path:
        """Where the stage's process may write its log; stages that run at the same time have one each."""
        return self._folder(name, identity).with_suffix(".log")

    def _folder(self, name: str, identity: Mapping[str, object]) -> Path:
        digest = identity_sha256({"name": name, "identity": dict(identity)})
        return self.folder / f"{name}-{digest[:16]}"


def identity_sha256(identity: Mapping[str, object]) -> str:
    """Hash of what decides a result, given in JSON terms; the order of keys is none of it."""
    text = json.dumps(dict(identity), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _digests(folder: Path) -> dict[str, str]:
    """Digest of every file at or below ``folder``. A manifest's are taken as they are: they are of the files as they
    were written, so one that has changed since is no finished stage's.
    """
    recorded = Manifest.read(folder).files if (folder / MANIFEST_FILE).is_file() else {}
    names = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.is_file()]
    unknown = [name for name in names if name not in recorded]
    found = dict(zip(unknown, sha256_paths(folder / name for name in unknown), strict=True))
    return found | {name: recorded[name] for name in names if name in recorded}
