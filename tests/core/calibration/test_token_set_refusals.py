"""Texts that are too few, sequences too long, folders without what a tokenizer needs."""

from __future__ import annotations

import shutil

import pytest

from fourfold.calibration import build_token_set
from fourfold.errors import CalibrationError

from .conftest import spec_for


def test_too_few_texts_say_how_many_rows_there_are(model_path, lines):
    words = sum(2 + i % 20 for i in range(40))
    with pytest.raises(CalibrationError, match=r"40 texts make \d+ rows of 8 tokens, not 500; ask for fewer samples"):
        build_token_set(spec_for(lines, samples=500), model_path)
    with pytest.raises(CalibrationError, match="40 texts make 40 rows of 8 tokens, not 41"):
        build_token_set(spec_for(lines, samples=41, packing="truncate"), model_path)
    assert words // 8 < 500


def test_a_sequence_longer_than_the_models_is_refused(model_path, lines):
    message = r"sequence length 65 is longer than the model's 64 \(max_position_embeddings in .*/config.json\)$"
    with pytest.raises(CalibrationError, match=message):
        build_token_set(spec_for(lines, sequence_length=65), model_path)


def test_a_folder_without_config_or_tokenizer_is_refused(lines, tmp_path):
    with pytest.raises(CalibrationError, match=r"config.json: cannot be read \("):
        build_token_set(spec_for(lines), tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gemma4"}')
    with pytest.raises(CalibrationError, match=rf"{tmp_path}: no usable tokenizer \("):
        build_token_set(spec_for(lines), tmp_path)


def test_a_chat_that_the_template_refuses_is_named_by_its_line(model_path, tmp_path):
    model = shutil.copytree(model_path, tmp_path / "model")
    (model / "chat_template.jinja").write_text("{{ raise_exception('roles must alternate') }}")
    chats = tmp_path / "chats.jsonl"
    chats.write_text('\n{"messages": [{"role": "user", "content": "w1"}]}\n')
    message = r"chats.jsonl:2: the model's chat template does not take this chat \(roles must alternate\)$"
    with pytest.raises(CalibrationError, match=message):
        build_token_set(spec_for(chats), model)
    chats.with_suffix(".txt").write_text("w1\n")
    with pytest.raises(CalibrationError, match=r"chats.txt: the model's chat template does not take this chat"):
        build_token_set(spec_for(chats.with_suffix(".txt"), chat_template=True), model)
