"""The texts that a divergence is measured on: chat-templated prompts, and the baseline's own greedy answers, as ids."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fourfold.checkpoint.index import read_json
from fourfold.config import Config
from fourfold.demo import HELD_OUT_COUNT, get_task
from fourfold.demo.chat import chat_messages
from fourfold.errors import EvaluationError, UnreachableDataError
from fourfold.evaluate.client import Reply, Request, ask
from fourfold.interfaces.benchmark import BenchmarkJob, MeasurementJob
from fourfold.interfaces.server import Endpoint
from fourfold.progress import Progress
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

    def require_prompts(self, prompts: Sequence[Messages], options: DivergenceOptions, folder: Path) -> None:
        """:class:`EvaluationError` where these were made of anything but the first of ``prompts``."""
        given = self.options.canonical_json()
        if self.options != options:
            raise EvaluationError(f"kl: {folder} was made with other options ({given}); choose another --output")
        known = [_prompt_sha256(messages) for messages in prompts]
        for index, sha256 in enumerate(self.prompts_sha256):
            if known[index : index + 1] != [sha256]:
                what = "reads otherwise now" if index < len(known) else "is not asked now"
                raise EvaluationError(
                    f"kl: {folder} answers prompt {index}, which {what}; it was made with another --limit or --data: "
                    "choose another --output"
                )

    def save(self, folder: Path) -> None:
        """Write ``folder``/sequences.json."""
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f".{SEQUENCES_FILE}.partial"
        partial.write_text(self.model_dump_json() + "\n", encoding="utf-8")
        partial.replace(folder / SEQUENCES_FILE)

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
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            record = json.loads(line)
        except ValueError as error:
            raise EvaluationError(f"{path}:{number}: not valid JSON ({error})") from None
        if not isinstance(record, dict) or not isinstance(record.get(field), kind):
            raise EvaluationError(f"{path}:{number}: field {field!r} is missing or no {kind.__name__}")
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


def answer_prompts(
    saved: SequenceSet | None,
    prompts: Sequence[Messages],
    endpoint: Endpoint,
    options: DivergenceOptions,
    job: MeasurementJob,
    progress: Progress,
) -> SequenceSet:
    """Greedy answers of the baseline, with the ids of prompt and answer as the server has them.

    ``saved`` answers the first of ``prompts``, which are not asked again.
    """
    found = dict(enumerate(saved.sequences if saved else ()))
    progress.begin(f"{job.target.name}: kl answers", total=len(prompts) - len(found), unit="prompt")

    def receive(reply: Reply) -> None:
        found[reply.key] = _read_sequence(reply, endpoint.url)
        progress.advance(1)

    requests = [
        Request(
            index,
            "chat/completions",
            {
                "model": endpoint.model,
                "messages": messages,
                "max_tokens": options.max_tokens,
                "temperature": 0.0,
                "seed": job.seed,
                "return_token_ids": True,
            },
        )
        for index, messages in enumerate(prompts)
        if index not in found
    ]
    ask(endpoint.url, requests, receive, concurrency=job.concurrency, timeout_s=job.timeout_s)
    ordered = tuple(found[index] for index in range(len(prompts)))
    hashes = tuple(_prompt_sha256(messages) for messages in prompts)
    return SequenceSet(options=options, model=job.target.name, prompts_sha256=hashes, sequences=ordered)


def _read_sequence(reply: Reply, url: str) -> TokenSequence:
    try:
        prompt_ids, answer_ids = reply.body["prompt_token_ids"], reply.body["choices"][0]["token_ids"]
    except (KeyError, IndexError, TypeError):
        prompt_ids = answer_ids = None
    if not prompt_ids or not answer_ids:
        raise EvaluationError(f"{url}: returns no token ids; kl needs vLLM's return_token_ids and prompt_logprobs")
    return TokenSequence(prompt_ids=tuple(prompt_ids), answer_ids=tuple(answer_ids))


def _prompt_sha256(messages: Messages) -> str:
    return hashlib.sha256(json.dumps(messages, sort_keys=True).encode()).hexdigest()
