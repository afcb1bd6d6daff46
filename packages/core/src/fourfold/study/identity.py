"""What makes two cells the same: all that decides their bytes, hashed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

from fourfold.study.cells import Cell


def cell_identity(cell: Cell, source_files: Mapping[str, str], environment: str) -> str:
    """Hash of the cell's config, the source's file digests and its environment's record."""
    record = {
        "config": cell.config.model_dump(mode="json"),
        "source_files": dict(source_files),
        "environment": environment,
    }
    return hashlib.sha256(json.dumps(record, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
