"""The folder of one evaluation: whose it is, and its record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fourfold.checkpoint.atomic import write_whole
from fourfold.errors import OutputError
from fourfold.results import EVAL_FILE, RESPONSES_FOLDER, EvalRecord, ModelRecord

RUN_FILE = "run.json"
MEASUREMENTS_FOLDER = "measurements"
LOGS_FOLDER = "logs"
#: What of a model's record may differ between two runs of the same model.
_VOLATILE = {"source", "url", "size_bytes", "server_version"}


def claim(folder: Path, record: ModelRecord, seed: int) -> None:
    """Make the folder this model's, or make sure that it is."""
    identity = {"model": record.model_dump(mode="json", exclude=_VOLATILE), "seed": seed}
    path = folder / RUN_FILE
    if not path.exists():
        if (folder / RESPONSES_FOLDER).exists() or (folder / EVAL_FILE).exists():
            raise OutputError(f"{folder}: holds responses but no {RUN_FILE}; choose another --output or remove it")
        write_whole(path, json.dumps(identity, indent=1, sort_keys=True) + "\n")
        return
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        found = {}
    differing = _differences(found, identity)
    if differing:
        raise OutputError(
            f"{folder}: holds the answers of another model or seed ({', '.join(differing)}); choose another --output"
        )


def _differences(found: dict[str, Any], identity: dict[str, Any]) -> list[str]:
    theirs, ours = dict(found.get("model") or {}), identity["model"]
    keys = [key for key in ours if theirs.get(key) != ours[key]]
    return keys + ([] if found.get("seed") == identity["seed"] else ["seed"])


def write_record(record: EvalRecord, folder: Path) -> None:
    """Replace ``folder``/eval.json as a whole."""
    write_whole(folder / EVAL_FILE, record.model_dump_json(indent=1) + "\n")
