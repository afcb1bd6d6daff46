"""A task's responses on disk: a line each, appended as they come, so that an interrupted run asks only what is missing.

A last line torn by a crash is dropped and its prompt asked again; a damaged line elsewhere is an error, and so is a
line that belongs to another question: a file answers one list of prompts, which may grow.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import ValidationError

from fourfold.checkpoint.atomic import atomic_file
from fourfold.errors import EvaluationError
from fourfold.interfaces.benchmark import Prompt
from fourfold.jsonl import GrowingFile, read_lines
from fourfold.results import PromptMetric, ResponseRecord, Usage

#: What identifies a question within a task: the prompt's id and which time it is asked.
Key = tuple[str, int]


def prompt_sha256(prompt: Prompt) -> str:
    """Over messages and sampling: whatever could change the answer."""
    return prompt.sha256()


def prompts_sha256(prompts: Sequence[Prompt]) -> str:
    """Over every prompt in order."""
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update(f"{prompt_sha256(prompt)}\n".encode())
    return digest.hexdigest()


class AnswerFile:
    """The responses of one task; :attr:`answers` holds what is there already, by key."""

    def __init__(self, path: Path, prompts: Sequence[Prompt], repeats: int) -> None:
        self.path = path
        self._prompts = prompts
        self._hashes = {prompt.id: prompt_sha256(prompt) for prompt in prompts}
        self._repeats = repeats
        self._file = GrowingFile(path)
        self.answers: dict[Key, ResponseRecord] = {}
        if len(self._hashes) != len(prompts):
            raise EvaluationError(f"{path.stem}: two prompts have the same id")
        for where, line in self._file.read():
            self._accept(_parse(line, where), where)

    @property
    def missing(self) -> list[tuple[Prompt, int]]:
        """(prompt, repeat) still to ask, whole repeats first to last."""
        return [
            (prompt, repeat)
            for repeat in range(self._repeats)
            for prompt in self._prompts
            if (prompt.id, repeat) not in self.answers
        ]

    def append(self, key: Key, text: str, finish_reason: str | None, usage: Usage, seconds: float) -> None:
        """Add one answer; the operating system has it at once."""
        prompt, repeat = key
        record = ResponseRecord(
            prompt=prompt,
            prompt_sha256=self._hashes[prompt],
            repeat=repeat,
            text=text,
            finish_reason=finish_reason,
            usage=usage,
            seconds=round(seconds, 4),
        )
        self._file.append(record.model_dump_json())
        self.answers[key] = record

    def close(self) -> None:
        """Close the file; the answers stay."""
        self._file.close()

    def of_repeat(self, repeat: int) -> list[ResponseRecord]:
        """The answers of one repeat in the order of the prompts; every one must be there."""
        return [self.answers[prompt.id, repeat] for prompt in self._prompts]

    def write_scored(self, scores: Sequence[Mapping[str, Mapping[str, PromptMetric]]]) -> None:
        """Replace the file by its answers in order, with ``scores`` by repeat and prompt."""
        self.close()
        with atomic_file(self.path) as stream:
            for repeat, by_prompt in enumerate(scores):
                for record in self.of_repeat(repeat):
                    scored = record.model_copy(update={"scores": dict(by_prompt.get(record.prompt, {}))})
                    stream.write(f"{scored.model_dump_json()}\n".encode())

    def _accept(self, record: ResponseRecord, where: str) -> None:
        known = self._hashes.get(record.prompt)
        if known != record.prompt_sha256 or record.repeat >= self._repeats:
            what = "is not asked now" if known is None or known == record.prompt_sha256 else "reads otherwise now"
            raise EvaluationError(
                f"{where}: answers prompt {record.prompt!r} (repeat {record.repeat + 1}), which {what}; "
                "it was made with another --limit, --repeats, --data or options: choose another --output"
            )
        self.answers[record.prompt, record.repeat] = record


def read_responses(path: Path) -> list[ResponseRecord]:
    """Every record of a finished responses file, in order; :class:`EvaluationError` names a damaged line."""
    if not path.is_file():
        raise EvaluationError(f"{path}: not there; it holds the responses of a finished task")
    return [_parse(line, where) for where, line in read_lines(path, EvaluationError)]


def _parse(line: str | bytes, where: str) -> ResponseRecord:
    try:
        return ResponseRecord.model_validate_json(line)
    except (ValidationError, json.JSONDecodeError):
        raise EvaluationError(f"{where}: no response record; remove the line to ask again") from None
