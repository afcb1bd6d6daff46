"""The file of responses: what a crash leaves is used, what belongs to other questions is refused."""

from __future__ import annotations

import resource
import signal
from pathlib import Path

import pytest

from fourfold.errors import EvaluationError, OutputError
from fourfold.evaluate.answers import AnswerFile, read_responses
from fourfold.interfaces.benchmark import Prompt, Sampling
from fourfold.results import Usage


def prompts(count: int, max_tokens: int = 8) -> list[Prompt]:
    return [
        Prompt(
            id=f"p{index}",
            messages=({"role": "user", "content": f"question {index}"},),
            sampling=Sampling(max_tokens=max_tokens),
        )
        for index in range(count)
    ]


def filled(path: Path, count: int, repeats: int = 1) -> AnswerFile:
    answers = AnswerFile(path, prompts(count), repeats)
    for prompt, repeat in answers.missing:
        answers.append((prompt.id, repeat), f"answer to {prompt.id} \u2028 é\n", "stop", Usage(), 0.1)
    answers.close()
    return answers


@pytest.mark.parametrize("cut", [1, 20, 60])
def test_a_torn_last_line_is_dropped_and_asked_again(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "task.jsonl"
    filled(path, 3)
    content = path.read_bytes()
    path.write_bytes(content[:-cut])
    again = AnswerFile(path, prompts(3), 1)
    assert [prompt.id for prompt, _ in again.missing] == ["p2"]
    again.append(("p2", 0), "answer to p2 \u2028 é\n", "stop", Usage(), 0.1)
    again.close()
    assert path.read_bytes() == content


def test_more_prompts_and_more_repeats_go_on_from_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "task.jsonl"
    filled(path, 2)
    missing = AnswerFile(path, prompts(3), 2).missing
    assert [(prompt.id, repeat) for prompt, repeat in missing] == [("p2", 0), ("p0", 1), ("p1", 1), ("p2", 1)]


def test_answers_to_other_questions_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "task.jsonl"
    filled(path, 3)
    with pytest.raises(EvaluationError, match=r"task.jsonl:3: answers prompt 'p2' .* is not asked now; .*--limit"):
        AnswerFile(path, prompts(2), 1)
    with pytest.raises(EvaluationError, match=r"task.jsonl:1: answers prompt 'p0' .* reads otherwise now"):
        AnswerFile(path, prompts(3, max_tokens=9), 1)
    filled(tmp_path / "two.jsonl", 1, repeats=2)
    with pytest.raises(EvaluationError, match=r"two.jsonl:2: answers prompt 'p0' \(repeat 2\), which is not asked now"):
        AnswerFile(tmp_path / "two.jsonl", prompts(1), 1)


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "task.jsonl"
    filled(path, 3)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b'{"prompt": "p1"}\n' + lines[2])
    with pytest.raises(EvaluationError, match=r"task.jsonl:2: no response record; remove the line to ask again"):
        AnswerFile(path, prompts(3), 1)
    with pytest.raises(EvaluationError, match=r"task.jsonl:2: "):
        read_responses(path)


def test_an_answer_that_a_full_disk_refuses_leaves_no_half_line(tmp_path: Path) -> None:
    path = tmp_path / "task.jsonl"
    filled(path, 1)
    content = path.read_bytes()
    answers = AnswerFile(path, prompts(2), 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(content) + 10, before[1]))
    try:
        with pytest.raises(OutputError, match=r"task\.jsonl: File too large"):
            answers.append(("p1", 0), "an answer", "stop", Usage(), 0.1)
        answers.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == content
    assert [prompt.id for prompt, _ in AnswerFile(path, prompts(2), 1).missing] == ["p1"]


def test_repeated_ids_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="two prompts have the same id"):
        AnswerFile(tmp_path / "task.jsonl", [*prompts(1), *prompts(1)], 1)
