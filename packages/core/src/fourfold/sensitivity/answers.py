"""The model's next-token distributions under each stream, against the teacher's.

Shape letters: T tokens of a row, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from fourfold.calibration import TokenSet
    from fourfold.progress import Progress
    from fourfold.sensitivity.findings import Choice, Stream
    from fourfold.sensitivity.textmodel import TextModel

#: The key of the unquantized model's own stream.
TEACHER: Choice = (-1, None)
#: Positions whose distributions are compared at once: a vocabulary of 262,144 takes 1 MiB a position.
_POSITIONS = 128


@dataclass
class Answer:
    """Mean divergence of each row, nats a token, and agreements in all."""

    row_kl: list[float] = field(default_factory=list)
    agreements: int = 0
    tokens: int = 0

    @property
    def kl(self) -> float:
        """Mean over tokens; rows are of equal length."""
        return sum(self.row_kl) / len(self.row_kl)

    @property
    def standard_error(self) -> float | None:
        """Of :attr:`kl`, over rows; None below two."""
        rows = len(self.row_kl)
        if rows < 2:
            return None
        return math.sqrt(sum((kl - self.kl) ** 2 for kl in self.row_kl) / (rows - 1) / rows)

    @property
    def top1_agreement(self) -> float:
        """Share of positions with the same most likely token."""
        return self.agreements / self.tokens


def measure_answers(
    model: TextModel, tokens: TokenSet, streams: dict[Choice, Stream], progress: Progress
) -> dict[Choice, Answer]:
    """KL(teacher || stream) of every stream but the teacher's own, at every position of every row."""
    if TEACHER not in streams:
        return {}
    answers = {choice: Answer() for choice in streams if choice != TEACHER}
    progress.begin("answers", total=len(tokens), unit="row")
    for number, batch in enumerate(tokens.batches()):
        for row in range(len(batch.input_ids)):
            part = slice(row, row + 1)
            rows = model.rows(batch.input_ids[part])
            teacher = model.logits(rows, streams[TEACHER].hidden[number][part])[0]
            for choice, answer in answers.items():
                _compare(teacher, model.logits(rows, streams[choice].hidden[number][part])[0], answer)
            progress.advance()
    return answers


def _compare(teacher_TV: torch.Tensor, student_TV: torch.Tensor, answer: Answer) -> None:
    total = 0.0
    for start in range(0, len(teacher_TV), _POSITIONS):
        teacher, student = teacher_TV[start : start + _POSITIONS], student_TV[start : start + _POSITIONS]
        log_p, log_q = teacher.log_softmax(-1), student.log_softmax(-1)
        total += float((log_p.exp() * (log_p - log_q)).sum(-1).double().sum())
        answer.agreements += int((teacher.argmax(-1) == student.argmax(-1)).sum())
    answer.tokens += len(teacher_TV)
    answer.row_kl.append(total / len(teacher_TV))
