"""Local data files in place of the hub's, checked line by line before the harness sees them.

The task stays the harness's own: a task file includes it and only says where the data lie.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fourfold.errors import EvaluationError
from fourfold.jsonl import read_objects
from fourfold.manifest import sha256_file

Check = Callable[[dict[str, Any]], str | None]


@dataclass(frozen=True)
class LocalData:
    """What a task reads: split -> file name, and what is wrong with a record, if anything."""

    files: dict[str, str]
    check: Check

    def find(self, folder: Path) -> dict[str, Path]:
        """Split -> checked file; :class:`EvaluationError` names the file, the line and the field."""
        found = {split: folder / name for split, name in self.files.items()}
        missing = [path.name for path in found.values() if not path.is_file()]
        if missing:
            raise EvaluationError(f"{folder / missing[0]}: not there; --data needs {' and '.join(self.files.values())}")
        for path in found.values():
            self._check_lines(path)
        return found

    def _check_lines(self, path: Path) -> None:
        where = None
        for where, record in read_objects(path, EvaluationError):
            if wrong := self.check(record):
                raise EvaluationError(f"{where}: {wrong}")
        if where is None:
            raise EvaluationError(f"{path}: empty")


def _field(record: dict[str, Any], name: str, kind: type) -> str | None:
    if name not in record:
        return f"field {name!r} is missing"
    if not isinstance(record[name], kind):
        return f"field {name!r} should be a {kind.__name__}, is a {type(record[name]).__name__}"
    return None


def _check_gsm8k(record: dict[str, Any]) -> str | None:
    if wrong := _field(record, "question", str) or _field(record, "answer", str):
        return wrong
    return None if "####" in record["answer"] else "field 'answer' does not end in '#### NUMBER'"


def _check_ifeval(record: dict[str, Any]) -> str | None:
    wrong = (
        _field(record, "key", int)
        or _field(record, "prompt", str)
        or _field(record, "instruction_id_list", list)
        or _field(record, "kwargs", list)
    )
    if wrong:
        return wrong
    instructions, settings = len(record["instruction_id_list"]), len(record["kwargs"])
    return None if instructions == settings else f"{instructions} instruction_id_list but {settings} kwargs"


GSM8K = LocalData({"train": "gsm8k_train.jsonl", "test": "gsm8k_test.jsonl"}, _check_gsm8k)
IFEVAL = LocalData({"train": "ifeval.jsonl"}, _check_ifeval)


def write_task_file(base: Path, task: str, files: dict[str, Path], folder: Path) -> Path:
    """A task file in ``folder`` that is the harness's ``base`` on local ``files``. JSON is YAML."""
    content = {
        "include": str(base),
        "task": task,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {
            "data_files": {split: str(path) for split, path in files.items()},
            "cache_dir": str(folder / "cache"),
        },
    }
    path = folder / f"{task}.yaml"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def describe_files(files: dict[str, Path]) -> dict[str, str]:
    """File name -> sha256, for the record."""
    return {path.name: sha256_file(path) for path in files.values()}
