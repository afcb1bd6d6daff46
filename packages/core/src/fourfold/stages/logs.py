"""Where the output of a process goes whose log nobody asked for: kept while an error may name it, removed else."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fourfold.progress import Progress


@contextmanager
def log_folder(name: str, progress: Progress) -> Iterator[Path]:
    """Yield a new folder ``fourfold-NAME-...`` among the system's temporary ones, for a log and what belongs to it.

    Removed when the block ends well or is interrupted. It stays when the block fails: the error's message names the
    log, or else a note says where it is.
    """
    folder = Path(tempfile.mkdtemp(prefix=f"fourfold-{name}-"))
    failed = False
    try:
        yield folder
    except Exception as error:
        failed = True
        if str(folder) not in str(error):
            progress.note(f"what {name} printed is in {folder}")
        raise
    finally:
        if not failed:
            shutil.rmtree(folder, ignore_errors=True)
