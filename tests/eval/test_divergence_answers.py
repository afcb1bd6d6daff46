"""The baseline's answers of ``kl``: which prompts they are of, and what of them outlives a run that was cut short."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eval.conftest import Run
from eval.endpoint import FakeEndpoint
from eval.tiny_model import TOP, TinyModel
from fourfold.errors import EvaluationError


def test_answers_are_kept_as_they_come(run: Run, models: tuple[TinyModel, TinyModel], tmp_path: Path) -> None:
    """An endpoint lost at the last prompt of ten loses that one, and a line torn by a crash is asked again."""
    base, _ = models
    settings = {"model": base.url, "tasks": ["kl"], "options": {"kl.top_k": TOP}, "concurrency": 1}
    base.dies_after = 9
    with pytest.raises(EvaluationError, match="the endpoint stopped answering"):
        run(limit=10, **settings)
    base.dies_after, base.asked = None, []
    kept = tmp_path / "out/measurements/kl/answers.jsonl"
    content = kept.read_bytes()
    assert content.count(b"\n") == 9
    with pytest.raises(EvaluationError, match=r"kl was made with other options \(.*choose another --output"):
        run(limit=10, **settings | {"options": {}})
    with pytest.raises(EvaluationError, match="kl answers prompt 8, which is not asked now"):
        run(limit=8, **settings)
    kept.write_bytes(content.replace(b'"index":3,', b'"index":-3,'))
    with pytest.raises(EvaluationError, match=r"answers\.jsonl:4: no answer of the baseline; remove the line to ask"):
        run(limit=10, **settings)
    assert base.asked == []
    kept.write_bytes(content[:-5])
    whole = run(limit=10, **settings).tasks[0]
    assert len([payload for payload in base.asked if "messages" in payload]) == 2
    assert not kept.exists()
    assert whole.prompts_sha256 == run("fresh", limit=10, **settings).tasks[0].prompts_sha256


def test_prompts_may_hold_what_separates_lines_elsewhere(
    run: Run, models: tuple[TinyModel, TinyModel], tmp_path: Path
) -> None:
    base, _ = models
    _write_prompts(tmp_path, ["first \u2028 \x85", "second"])
    path = tmp_path / "prompts.jsonl"
    raw = "".join(json.dumps(json.loads(line), ensure_ascii=False) + "\n" for line in path.read_text().split("\n")[:-1])
    path.write_bytes(f"\ufeff{raw}\n".encode())
    settings = {"model": base.url, "data": tmp_path, "options": {"kl.prompts": "file", "kl.top_k": TOP}}
    assert run(tasks=["kl"], **settings).tasks[0].prompts == 2
    assert any("first \u2028 \x85 and" in payload["messages"][0]["content"] for payload in base.asked[:2])
    path.write_text('{"messages": []}\n[]\n')
    with pytest.raises(EvaluationError, match=r"prompts\.jsonl:2: a list, where an object is expected"):
        run("other", tasks=["kl"], **settings)
    path.write_text('{"message": []}\n')
    with pytest.raises(EvaluationError, match=r"prompts\.jsonl:1: field 'messages' is missing or no list"):
        run("other", tasks=["kl"], **settings)


def test_edited_prompts_are_refused_before_another_task_is_asked(
    run: Run, endpoint: FakeEndpoint, models: tuple[TinyModel, TinyModel], tmp_path: Path
) -> None:
    base, _ = models
    settings = {"model": base.url, "data": tmp_path, "options": {"kl.prompts": "file", "kl.top_k": TOP}}
    with pytest.raises(EvaluationError, match=r"kl: prompts\.jsonl is not there; give its folder by --data"):
        run(tasks=["demo-math", "kl"], **settings)
    _write_prompts(tmp_path, ["first", "second"])
    run(tasks=["kl"], **settings)
    asked = len(base.asked)
    _write_prompts(tmp_path, ["first", "edited"])
    with pytest.raises(EvaluationError, match=r"kl answers prompt 1, which reads otherwise now; it was made with"):
        run(tasks=["demo-math", "kl"], **settings)
    assert len(base.asked) == asked


def _write_prompts(folder: Path, questions: list[str]) -> None:
    texts = [question + " and some more words, so that there is an answer to take from it" for question in questions]
    records = [{"messages": [{"role": "user", "content": text}]} for text in texts]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
