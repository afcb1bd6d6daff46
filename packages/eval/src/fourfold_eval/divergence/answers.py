"""The baseline's answers as they come: a line each, so that an endpoint that goes away costs those it still owed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import NonNegativeInt, ValidationError

from fourfold.config import Config
from fourfold.errors import EvaluationError
from fourfold.evaluate.client import Reply, Request, ask
from fourfold.interfaces.benchmark import MeasurementJob
from fourfold.interfaces.server import Endpoint
from fourfold.jsonl import GrowingFile
from fourfold.progress import Progress
from fourfold_eval.divergence.sequences import Messages, SequenceSet, TokenSequence, prompt_sha256
from fourfold_eval.options import DivergenceOptions

ANSWERS_FILE = "answers.jsonl"


class AnsweredPrompt(Config):
    """One line: which prompt, the sha256 of its messages, the options it was asked with, and what came."""

    index: NonNegativeInt
    prompt_sha256: str
    options: DivergenceOptions
    sequence: TokenSequence


class BaselineAnswers:
    """What a folder holds of the answers to ``prompts``: a finished set, and the lines of one that is being made.

    :class:`EvaluationError` where it was made with other options, or of anything but the first of ``prompts``.
    """

    def __init__(self, folder: Path, prompts: Sequence[Messages], options: DivergenceOptions) -> None:
        self._folder, self._prompts, self._options = folder, prompts, options
        self._hashes = tuple(prompt_sha256(messages) for messages in prompts)
        self._file = GrowingFile(folder / ANSWERS_FILE)
        self._saved = SequenceSet.load(folder)
        self._found: dict[int, TokenSequence] = {}
        if self._saved is not None:
            self._require(self._saved.options, enumerate(self._saved.prompts_sha256))
            self._found.update(enumerate(self._saved.sequences))
        for where, line in self._file.read():
            answered = _parse(line, where)
            self._require(answered.options, [(answered.index, answered.prompt_sha256)])
            self._found.setdefault(answered.index, answered.sequence)

    @property
    def missing(self) -> list[int]:
        """Prompts without an answer, first to last."""
        return [index for index in range(len(self._prompts)) if index not in self._found]

    def sequences(self, model: str) -> SequenceSet | None:
        """The answers of ``model`` in the prompts' order; None while one is missing."""
        if self.missing:
            return None
        ordered = tuple(self._found[index] for index in range(len(self._prompts)))
        return SequenceSet(options=self._options, model=model, prompts_sha256=self._hashes, sequences=ordered)

    def complete(self, endpoint: Endpoint, job: MeasurementJob, progress: Progress) -> None:
        """Ask ``endpoint`` greedily for what is missing; each answer is on disk before the next is taken."""
        missing = self.missing
        progress.begin(f"{job.target.name}: kl answers", total=len(missing), unit="prompt")
        requests = [Request(index, "chat/completions", self._payload(index, endpoint, job.seed)) for index in missing]

        def receive(reply: Reply) -> None:
            self._append(reply.key, _read_sequence(reply, endpoint.url))
            progress.advance(1)

        try:
            ask(endpoint.url, requests, receive, concurrency=job.concurrency, timeout_s=job.timeout_s)
        finally:
            self._file.close()

    def save(self, sequences: SequenceSet) -> None:
        """Keep the finished set in place of its lines."""
        if sequences != self._saved:
            sequences.save(self._folder)
        self._file.path.unlink(missing_ok=True)

    def _payload(self, index: int, endpoint: Endpoint, seed: int) -> dict[str, object]:
        return {
            "model": endpoint.model,
            "messages": self._prompts[index],
            "max_tokens": self._options.max_tokens,
            "temperature": 0.0,
            "seed": seed,
            "return_token_ids": True,
        }

    def _append(self, index: int, sequence: TokenSequence) -> None:
        line = AnsweredPrompt(index=index, prompt_sha256=self._hashes[index], options=self._options, sequence=sequence)
        self._file.append(line.model_dump_json())
        self._found[index] = sequence

    def _require(self, options: DivergenceOptions, answered: Iterable[tuple[int, str]]) -> None:
        if options != self._options:
            given = options.canonical_json()
            raise EvaluationError(f"kl: {self._folder} was made with other options ({given}); choose another --output")
        for index, sha256 in answered:
            if self._hashes[index : index + 1] != (sha256,):
                what = "reads otherwise now" if index < len(self._hashes) else "is not asked now"
                raise EvaluationError(
                    f"kl: {self._folder} answers prompt {index}, which {what}; it was made with another --limit or "
                    "--data: choose another --output"
                )


def _parse(line: bytes, where: str) -> AnsweredPrompt:
    try:
        return AnsweredPrompt.model_validate_json(line)
    except ValidationError:
        raise EvaluationError(f"{where}: no answer of the baseline; remove the line to ask again") from None


def _read_sequence(reply: Reply, url: str) -> TokenSequence:
    try:
        prompt_ids, answer_ids = reply.body["prompt_token_ids"], reply.body["choices"][0]["token_ids"]
    except (KeyError, IndexError, TypeError):
        prompt_ids = answer_ids = None
    if not prompt_ids or not answer_ids:
        raise EvaluationError(f"{url}: returns no token ids; kl needs vLLM's return_token_ids and prompt_logprobs")
    return TokenSequence(prompt_ids=tuple(prompt_ids), answer_ids=tuple(answer_ids))
