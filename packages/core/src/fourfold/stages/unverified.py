"""A checkpoint that was written and not yet verified, so that the same command after a crash goes on with verifying it.

The export ends with a rename, and the run only after ``verify``. In between, the output folder is there and full, and
a run that was killed would find its own result in its way. A note in the stages' folder, written before the rename and
removed at the run's end, says whose it is: the hash of all that decides the checkpoint, and of its manifest, which
holds every file's.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from fourfold.checkpoint.atomic import explain_os_error
from fourfold.checkpoint.index import read_json
from fourfold.errors import CheckpointError
from fourfold.manifest import MANIFEST_FILE, Manifest, sha256_file, sha256_paths
from fourfold.stages.store import identity_sha256


class UnverifiedNote:
    """The note on one output folder."""

    def __init__(self, stages: Path, output: Path) -> None:
        self._output = output
        name = hashlib.sha256(os.fsencode(output.absolute())).hexdigest()[:16]
        self._path = stages / f"unverified-{name}.json"

    @property
    def exists(self) -> bool:
        """Whether some run left a note, and a folder for it to be about."""
        return self._path.is_file() and self._output.is_dir()

    def fits(self, identity: Mapping[str, object]) -> bool:
        """Whether the folder is what a run of this ``identity`` wrote, every file as it was."""
        try:
            note = read_json(self._path)
            manifest_sha256 = sha256_file(self._output / MANIFEST_FILE)
            if (note.get("identity"), note.get("manifest_sha256")) != (identity_sha256(identity), manifest_sha256):
                return False
            files = Manifest.read(self._output).files
            if {path.name for path in self._output.iterdir()} != {*files, MANIFEST_FILE}:
                return False
            return list(sha256_paths(self._output / name for name in files)) == list(files.values())
        except (CheckpointError, OSError):
            return False

    def write(self, identity: Mapping[str, object], partial: Path) -> None:
        """Note that ``partial``, whole and about to be renamed, is the result of ``identity``."""
        note = {"identity": identity_sha256(identity), "manifest_sha256": sha256_file(partial / MANIFEST_FILE)}
        text = json.dumps(note, indent=1)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("w", encoding="utf-8") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())

    def clear(self) -> None:
        """The run is over: from now on the folder is somebody's checkpoint, and in no run's way.

        Raises :class:`fourfold.errors.OutputError` without the right to; the same command then verifies again.
        """
        try:
            self._path.unlink(missing_ok=True)
        except OSError as error:
            raise explain_os_error(error, self._path) from error
