"""What the smoke test sends, and that nothing but right answers passes it."""

from __future__ import annotations

import base64
import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from core.serving.conftest import as_stream
from fourfold.cli.app import app
from fourfold.demo.tasks import TASKS
from fourfold.errors import UnknownNameError
from fourfold.progress import NoProgress
from fourfold.serving.smoke import TASK_OF, parse_modalities, smoke

COUNT = 3
PROBLEMS = {name: TASKS[task].generate("test", COUNT) for name, task in TASK_OF.items()}


def question_of(payload: dict):
    """The problem a request asks: by its words, and by the pixels it carries."""
    (user,) = [message for message in payload["messages"] if message["role"] == "user"]
    *media, text = user["content"]
    modality = {"image_url": "image", "video_url": "video"}[media[0]["type"]] if media else "text"
    for problem in PROBLEMS[modality]:
        if problem.prompt == text["text"] and (not media or shows(media[0], modality, problem)):
            return problem
    raise AssertionError("a request that asks none of the problems")


def shows(part: dict, modality: str, problem) -> bool:
    head, data = part[f"{modality}_url"]["url"].split(",", 1)
    assert head == {"image": "data:image/png;base64", "video": "data:video/jpeg;base64"}[modality]
    frames = np.stack([np.asarray(Image.open(io.BytesIO(base64.b64decode(frame)))) for frame in data.split(",")])
    drawn = problem.frames()
    if modality == "image":
        return np.array_equal(frames, drawn)
    # JPEG: what was drawn, within what its compression changes.
    return frames.shape == drawn.shape and float(np.abs(frames.astype(int) - drawn).mean()) < 4


def run(endpoint, **options):
    return {(c.modality, c.streamed): c for c in smoke(endpoint, NoProgress(), count=COUNT, **options).checks}


def test_right_answers_pass_in_every_modality(endpoint, script):
    script.answer = lambda payload: question_of(payload).target
    checks = run(endpoint)
    assert [check.error for check in checks.values()] == [None] * 6
    assert all(check.correct == COUNT for check in checks.values())
    assert {payload["temperature"] for payload in script.asked} == {0}
    assert len(script.asked) == 6 * COUNT


def test_fluent_and_blind_fails(endpoint, script):
    """The same pleasant sentence for every picture."""
    script.answer = lambda payload: "A red circle moves left."
    assert {c.error for c in run(endpoint, modalities=("image", "video")).values()} <= {
        f"only {right} of {COUNT} answers are right" for right in range(COUNT)
    }


@pytest.mark.parametrize(
    ("body", "status", "streamed", "error"),
    [
        (b'{"message": "no images\\nhere"}', 400, False, 'status 400: {"message": "no images\\nhere"}'),
        (b"<html>", 200, False, "no chat completion"),
        (b'{"choices": [{"message": {"content": "  "}}]}', 200, False, "an empty answer"),
        (as_stream("three words here", done=False), 200, True, "the stream ended without [DONE]"),
        (as_stream("all at once", pieces=1), 200, True, "the stream came in one piece"),
        (b"data: {nonsense\n\n", 200, True, "a broken event: {nonsense"),
    ],
)  # fmt: skip
def test_what_no_client_can_use_is_named(endpoint, script, body, status, streamed, error):
    script.answer, script.status = lambda payload: body, status
    assert run(endpoint, modalities=("text",))["text", streamed].error == error


def test_a_server_that_is_gone_is_a_failed_check(endpoint):
    nowhere = replace(endpoint, url="http://127.0.0.1:9/v1")
    assert run(nowhere, modalities=("text",))["text", False].error == "[Errno 111] Connection refused"


def test_the_users_key_goes_with_every_question(endpoint, script, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    script.answer = lambda payload: question_of(payload).target
    assert {check.error for check in run(endpoint, modalities=("text",)).values()} == {None}
    assert script.keys == ["Bearer secret"] * 2 * COUNT


def test_a_proxy_is_for_other_machines(endpoint, script, proxy):
    script.answer = lambda payload: question_of(payload).target
    proxy("http://127.0.0.1:9")
    assert {check.error for check in run(endpoint, modalities=("text",)).values()} == {None}
    proxy(endpoint.url.removesuffix("/v1"))
    elsewhere = replace(endpoint, url="http://served.invalid/v1")
    assert {check.error for check in run(elsewhere, modalities=("text",)).values()} == {None}


def test_an_answer_with_brackets_is_shown_as_it_is(endpoint, script):
    """Not read as the table's markup, of which [/INST] would close what nobody opened."""
    script.answer = lambda payload: "I am [red] 5 [/INST]"
    done = CliRunner().invoke(app, ["smoke", endpoint.url, "--modality", "text", "--server", "vllm-cpu"])
    assert done.exit_code == 1, done.exception
    assert done.stdout.count("I am [red] 5 [/INST]") == 2


def test_modalities_by_name():
    assert parse_modalities(None) == ("text", "image", "video")
    assert parse_modalities(["video"]) == ("video",)
    with pytest.raises(UnknownNameError, match="unknown modality 'smell'; known: image, text, video"):
        parse_modalities(["smell"])
