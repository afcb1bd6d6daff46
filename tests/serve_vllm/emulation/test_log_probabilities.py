"""What vLLM serves through the plugin against an independent reference, position by position, in float32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch

from serve_vllm.emulation.comparison import Agreement, compare
from serve_vllm.emulation.reference import build, log_probs

#: Float32 sums in another order, over logits of this size.
TOLERANCE = 5e-5


@pytest.fixture(scope="session")
def reference(texts, pictures) -> Callable[..., list[np.ndarray]]:
    """Log-probabilities of a checkpoint under a rule, of the texts and, if asked, of the pictures."""
    known: dict[tuple, list[np.ndarray]] = {}
    inputs = [{"input_ids": torch.tensor([ids])} for ids in texts]

    def of(folder: Path, activations: str, *, with_pictures: bool = False) -> list[np.ndarray]:
        key = folder, activations, with_pictures
        if key not in known:
            extra = [picture["inputs"] for picture in pictures] if with_pictures else []
            known[key] = log_probs(build(folder, activations), inputs + extra)
        return known[key]

    return of


def assert_agrees(found: Agreement, *, may_break: bool, record_property) -> None:
    record_property("agreement", str(found))
    assert found.positions >= 500
    assert found.worst < TOLERANCE and found.top1 == found.compared, found
    if may_break:
        assert found.compared > 0.6 * found.positions, found
    else:
        assert found.compared == found.positions, found


W4A4 = {
    "modelopt": ("modelopt_layout", "merged"),
    "modelopt compiled": ("modelopt_layout", "merged"),
    "modelopt per-expert": ("modelopt_layout", "per-expert"),
    "ct": ("compressed_tensors_layout", "merged"),
    "ct compiled": ("compressed_tensors_layout", "merged"),
    "experts-only": ("experts_only", "merged"),
}
W4A16 = {
    "modelopt W4A16 compiled": "modelopt_layout",
    "ct ignored": "compressed_tensors_layout",
    "weight-only": "weight_only",
}


@pytest.mark.parametrize("case", W4A4)
def test_w4a4(case, engines, reference, request, record_property):
    folder, rule = W4A4[case]
    found = compare(*engines[case], reference(request.getfixturevalue(folder), rule))
    assert_agrees(found, may_break=True, record_property=record_property)


@pytest.mark.parametrize("layout", ["modelopt", "compressed-tensors"])
@pytest.mark.parametrize("alone", ["attention", "experts"])
def test_two_schemes_in_one_checkpoint(layout, alone, mixed, engines, reference, record_property):
    """Each module is computed in its own: rounding the inputs of none, or weights alone of all, is told apart."""
    case = f"{layout} {alone}"
    found = compare(*engines[case], reference(mixed[case], "merged"))
    assert_agrees(found, may_break=True, record_property=record_property)
    assert compare(*engines[case], reference(mixed[case], "none")).compared < 0.1 * found.positions


@pytest.mark.parametrize("case", W4A16)
def test_w4a16(case, engines, reference, request, record_property):
    found = compare(*engines[case], reference(request.getfixturevalue(W4A16[case]), "none"))
    assert_agrees(found, may_break=False, record_property=record_property)


def test_pictures(engines, reference, weight_only, record_property):
    """Where the vision tower computes in float32, as the rest (``float32_tower``), pictures agree as texts do."""
    ids, served = engines["pictures"]
    rows = np.concatenate(reference(weight_only, "none", with_pictures=True))
    difference = np.abs(np.take_along_axis(rows, ids, axis=1) - served).max(1)
    first = ids[np.arange(len(ids)), served.argmax(1)]
    record_property("pictures", f"largest {difference.max()}, same first {(first == rows.argmax(1)).mean()}")
    assert difference.max() < TOLERANCE
    assert (first == rows.argmax(1)).all()


def test_lazy_decoding_is_the_same_bits(engines):
    for lazy, once in zip(engines["modelopt lazy"], engines["modelopt"], strict=True):
        assert np.array_equal(lazy, once)


def test_the_language_model_alone_is_the_same_bits(engines):
    for text, whole in zip(engines["text-only"], engines["modelopt"], strict=True):
        assert np.array_equal(text, whole)


def test_the_rules_differ(engines, reference, modelopt_layout):
    """What is compared above could not pass for another rule."""
    for case, other in (("modelopt", "per-expert"), ("modelopt per-expert", "merged"), ("modelopt", "none")):
        found = compare(*engines[case], reference(modelopt_layout, other))
        assert found.compared < 0.1 * found.positions


def test_over_http(served, modelopt_layout, texts, reference, record_property):
    """The same from ``fourfold serve`` through the OpenAI endpoint's ``prompt_logprobs``."""
    endpoint = served(modelopt_layout, dtype="float32")
    ids, values = [], []
    for prompt in texts:
        body = {"model": endpoint.model, "prompt": prompt, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 20}
        answer = httpx.post(f"{endpoint.url}/completions", json=body, timeout=120).raise_for_status().json()
        for position in answer["choices"][0]["prompt_logprobs"][1:]:
            best = sorted(position.items(), key=lambda item: item[1]["rank"])[:20]
            ids.append([int(token) for token, _ in best])
            values.append([entry["logprob"] for _, entry in best])
    found = compare(np.array(ids), np.array(values, dtype=np.float32), reference(modelopt_layout, "merged"))
    assert_agrees(found, may_break=True, record_property=record_property)


@pytest.mark.parametrize("layout", ["modelopt_layout", "compressed_tensors_layout"])
def test_both_layouts_answer_texts_and_pictures(layout, served, cli_json, request):
    """W4A4 as served, asked as a user asks: all but at most one of four right of each kind, streamed or not."""
    endpoint = served(request.getfixturevalue(layout), dtype="float32")
    report = cli_json("smoke", endpoint.url, "--modality", "text", "--modality", "image")
    assert report["exit_code"] == 0
    found = {(check["modality"], check["streamed"]): check["correct"] for check in report["checks"]}
    assert found.keys() == {(kind, streamed) for kind in ("text", "image") for streamed in (False, True)}
    assert min(found.values()) >= 3
