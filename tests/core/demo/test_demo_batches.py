"""Packed training batches are what the processor and the chat template would have made, document by document."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from fourfold.demo import model_path
from fourfold.demo.batches import (
    IGNORED,
    TASK_NAMES,
    BatchRecipe,
    make_batch,
    media_text,
    pack_batch,
    step_problems,
    stream_batches,
)
from fourfold.demo.evaluate import model_inputs_of
from fourfold.demo.tasks import TASKS, get_task
from fourfold.demo.tokens import chat_text
from fourfold.demo.training import model_inputs, token_losses

MIX = {"math": 2, "instruct": 2, "prose": 2, "vision": 2, "clip": 1}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(model_path() / "tokenizer.json"))


def recipe(seed: int = 1) -> BatchRecipe:
    return BatchRecipe(model_path() / "tokenizer.json", MIX, 512, seed)


@pytest.mark.parametrize("name", ["math", "instruct", "vision", "clip"])
def test_prompts_are_token_for_token_the_processors(
    demo_model: tuple[Any, Any], tokenizer: Tokenizer, name: str
) -> None:
    _, processor = demo_model
    for problem in get_task(name).generate("train", 12, seed=2):
        expected = model_inputs_of(processor, [problem], torch.device("cpu"))["input_ids"][0].tolist()
        prompt, _ = chat_text(problem, media_text(problem, num_frames=4))
        assert tokenizer.encode(prompt, add_special_tokens=False).ids == expected


@pytest.mark.parametrize("name", ["vision", "clip"])
def test_pixels_and_positions_are_the_processors(demo_model: tuple[Any, Any], tokenizer: Tokenizer, name: str) -> None:
    _, processor = demo_model
    problem = get_task(name).generate("train", 1, seed=2)[0]
    ours, _, _ = model_inputs(pack_batch(tokenizer, [problem], 512), torch.device("cpu"))
    theirs = model_inputs_of(processor, [problem], torch.device("cpu"))
    for key in set(theirs) & {"pixel_values", "image_position_ids", "pixel_values_videos", "video_position_ids"}:
        patches = ours[key].shape[-2]
        torch.testing.assert_close(ours[key], theirs[key][..., :patches, :].to(ours[key].dtype))
        padding = theirs[key][..., patches:, :]
        assert patches == 256
        assert (padding == (-1 if "position" in key else 0)).all()


def test_documents_in_a_row_do_not_see_each_other(demo_model: tuple[Any, Any], tokenizer: Tokenizer) -> None:
    model, _ = demo_model
    problems = step_problems(MIX, seed=1, step=0)

    def loss(batch: Any) -> float:
        inputs, labels, _ = model_inputs(batch, torch.device("cpu"))
        return float(token_losses(reference(**inputs).logits, labels).double().sum())

    import copy

    reference = copy.deepcopy(model).float()
    with torch.no_grad():
        packed = pack_batch(tokenizer, problems, 512)
        assert packed.input_ids_RT.shape[0] < len(problems), "nothing was packed together"
        alone = sum(loss(pack_batch(tokenizer, [problem], 512)) for problem in problems)
        assert loss(packed) == pytest.approx(alone, rel=1e-4)


def test_only_responses_carry_loss(tokenizer: Tokenizer) -> None:
    batch = pack_batch(tokenizer, step_problems(MIX, seed=1, step=0), 512)
    for name in TASK_NAMES:
        of_task = batch.task_RT == TASK_NAMES.index(name)
        labelled = of_task & (batch.labels_RT != IGNORED)
        assert labelled.any()
        assert (batch.labels_RT[labelled] == batch.input_ids_RT[labelled]).all()
        text = tokenizer.decode(batch.input_ids_RT[labelled].tolist(), skip_special_tokens=False)
        assert text.count("<eos>" if name == "prose" else "<turn|>") == MIX[name]
        assert "<|turn>" not in text
        assert "<|image|>" not in text
    assert (batch.labels_RT[batch.task_RT < 0] == IGNORED).all()


def test_a_document_longer_than_a_row_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match=r"a clip document has \d+ tokens, a row 100"):
        pack_batch(tokenizer, get_task("clip").generate("train", 1), 100)


def test_workers_give_the_same_batches_in_the_same_order() -> None:
    direct = [make_batch(recipe(), step) for step in range(3, 6)]
    for one, other in zip(direct, stream_batches(recipe(), range(3, 6), num_workers=2), strict=True):
        for name in vars(one):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert not np.array_equal(direct[0].input_ids_RT, make_batch(recipe(seed=2), 3).input_ids_RT)


def test_training_steps_use_training_problems_only() -> None:
    held_out = {p.key for name in MIX for split in ("validation", "test") for p in TASKS[name].generate(split, 200)}
    assert not held_out & {p.key for step in range(20) for p in step_problems(MIX, 1, step)}


def test_numbers_are_rows_of_digits_and_any_text_comes_back(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode("17 + 205 = 222", add_special_tokens=False).tokens
    assert [t for t in tokens if any(c.isdigit() for c in t)] == list("17205222")
    for text in ("".join(map(chr, range(0x20, 0x7F))), "naïve Ωmega 漢字\n\ttab", "A  B"):
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids) == text


def test_chat_template_refuses_what_the_model_does_not_know(demo_model: tuple[Any, Any], tmp_path: Path) -> None:
    _, processor = demo_model
    with pytest.raises(Exception, match=r"text, image and video parts, not audio"):
        processor.apply_chat_template([{"role": "user", "content": [{"type": "audio"}]}], tokenize=False)
    with pytest.raises(Exception, match=r"knows the roles system, developer, user and assistant, not tool"):
        processor.apply_chat_template([{"role": "tool", "content": "x"}], tokenize=False)
    plain = processor.apply_chat_template(
        [{"role": "developer", "content": "Be brief. "}, {"role": "user", "content": " Hi"}],
        add_generation_prompt=True, tokenize=False,
    )  # fmt: skip
    assert plain == "<bos><|turn>system\nBe brief.<turn|>\n<|turn>user\nHi<turn|>\n<|turn>model\n"
