"""The texts that a divergence is measured on: chat-templated prompts, and the baseline's own greedy answers, as ids."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from fourfold.checkpoint.atomic import write_whole
from fourfold.checkpoint.index import read_json
from fourfold.config import Config
from fourfold.demo import HELD_OUT_COUNT, get_task
from fourfold.demo.chat import chat_messages
from fourfold.errors import EvaluationError, UnreachableDataError
from fourfold.interfaces.benchmark import BenchmarkJob, MeasurementJob
from fourfold.jsonl import read_objects
from fourfold_eval.options import DivergenceOptions

SEQUENCES_FILE = "sequences.json"
_GSM8K_FILE = "gsm8k_test.jsonl"
_PROMPTS_FILE = "prompts.jsonl"

#: One conversation, as a chat endpoint takes it.
Messages = list[dict[str, Any]]


class TokenSequence(Config):
    """One conversation as the server tokenized it: the templated prompt, then the answer with its closing token."""

    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]


class SequenceSet(Config):
    """Every sequence in order, with what made them: a candidate is measured with the same options.

    ``prompts_sha256`` has one of each sequence's messages, as the data gave them.
    """

    options: DivergenceOptions
    model: str
    prompts_sha256: tuple[str, ...]
    sequences: tuple[TokenSequence, ...]

    @property
    def ids_sha256(self) -> str:
        """Over all token ids."""
        return hashlib.sha256(self.model_dump_json(include={"sequences"}).encode()).hexdigest()

    def asked_sha256(self, index: int) -> str:
        """Over whatever decides what the distributions of one sequence are of."""
        sequence = self.sequences[index]
        asked = [self.options.top_k, sequence.prompt_ids, sequence.answer_ids]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()

    def save(self, folder: Path) -> None:
        """Write ``folder``/sequences.json."""
        write_whole(folder / SEQUENCES_FILE, self.model_dump_json() + "\n")

    @classmethod
    def load(cls, folder: Path) -> SequenceSet | None:
        """What was saved there, or None."""
        path = folder / SEQUENCES_FILE
        return cls.parse(read_json(path), where=str(path)) if path.is_file() else None


def chat_prompts(options: DivergenceOptions, job: BenchmarkJob | MeasurementJob) -> list[Messages]:
    """The conversations to answer, in a fixed order."""
    count = min(job.limit or options.max_prompts, options.max_prompts)
    if options.prompts == "gsm8k":
        questions = _lines(_data(job, _GSM8K_FILE), "question", str) if job.data else _hub_questions()
        return [[{"role": "user", "content": question}] for question in questions[:count]]
    if options.prompts == "file":
        return [list(messages) for messages in _lines(_data(job, _PROMPTS_FILE), "messages", list)][:count]
    task = get_task(options.prompts.removeprefix("demo-"))
    return [chat_messages(problem) for problem in task.generate("test", HELD_OUT_COUNT)[:count]]


def _data(job: BenchmarkJob | MeasurementJob, name: str) -> Path:
    path = (job.data or Path()) / name
    if job.data is None or not path.is_file():
        raise EvaluationError(f"kl: {name} is not there; give its folder by --data")
    return path


def _lines(path: Path, field: str, kind: type) -> list[Any]:
    values = []
    for where, record in read_objects(path, EvaluationError):
        if not isinstance(record.get(field), kind):
            raise EvaluationError(f"{where}: field {field!r} is missing or no {kind.__name__}")
        values.append(record[field])
    return values


def _hub_questions() -> list[str]:
    from datasets import load_dataset

    try:
        return [str(question) for question in load_dataset("openai/gsm8k", "main", split="test")["question"]]
    except OSError as error:
        raise UnreachableDataError(
            f"kl: GSM8K could not be fetched ({type(error).__name__}); give it by --data"
        ) from None


def prompt_sha256(messages: Messages) -> str:
    """Of one conversation, as the data gave it."""
    return hashlib.sha256(json.dumps(messages, sort_keys=True).encode()).hexdigest()
