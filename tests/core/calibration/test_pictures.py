"""Chats with pictures: rows and their media on disk, and every refusal in one line."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from PIL import Image

from fourfold.calibration import CalibrationSpec, TokenSet, build_token_set
from fourfold.calibration.sources import read_texts, source_files
from fourfold.demo import model_path as demo_path
from fourfold.errors import CalibrationError

PICTURE = {"type": "image", "path": "pictures/1.png"}


def chat(*parts):
    return {"messages": [{"role": "user", "content": [*parts, {"type": "text", "text": "What is in the picture?"}]}]}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "chats" / "pictures").mkdir(parents=True)
    Image.new("RGB", (96, 96), "red").save(tmp_path / "chats" / "pictures" / "1.png")
    Image.new("RGB", (96, 96), "red").save(tmp_path / "outside.png")
    return tmp_path / "chats"


def spec_of(folder, *rows, **changes):
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {"source": str(folder / "a.jsonl"), "samples": len(rows), "sequence_length": 192} | changes
    return CalibrationSpec(**given)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (chat({"type": "image", "path": "pictures/2.png"}), "jsonl:2: no picture pictures/2.png in "),
        (chat({"type": "image", "path": "../outside.png"}), "jsonl:2: picture ../outside.png lies outside "),
        (chat({"type": "image", "path": "link.png"}), "jsonl:2: picture link.png lies outside "),
        (chat({"type": "image"}), "jsonl:2: a content part of type image without a path; known: text, and image"),
        (chat({"type": "video", "path": "1.mp4"}), "jsonl:2: a content part of type video; known: text, and image"),
        ({"text": "no chat"}, "jsonl:2: no field 'messages'; found: text"),
        ({"messages": 5}, "jsonl:2: field 'messages' holds a int, not a string or a list of chat messages"),
    ],
)
def test_lines_that_cannot_be_used(folder, row, message):
    (folder / "link.png").symlink_to("../outside.png")
    with pytest.raises(CalibrationError, match=message) as caught:
        list(read_texts(spec_of(folder, chat(PICTURE), row)))
    assert "\n" not in str(caught.value)


def test_rows_that_cannot_be_made(folder, tmp_path, model_path):
    with pytest.raises(
        CalibrationError, match=r"jsonl:1: \d+ tokens, those of a picture among them after the first 20;"
    ):
        build_token_set(spec_of(folder, chat(PICTURE), sequence_length=20), demo_path())
    with pytest.raises(CalibrationError, match="1 chats, not 2; ask for fewer samples"):
        build_token_set(spec_of(folder, chat(PICTURE), samples=2), demo_path())
    with pytest.raises(CalibrationError, match=f"{model_path}: no vision_config in its config.json"):
        build_token_set(spec_of(folder, chat(PICTURE), sequence_length=32), model_path)
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo_path() / name, bare)
    with pytest.raises(CalibrationError, match=f"{bare}: no usable processor "):
        build_token_set(spec_of(folder, chat(PICTURE)), bare)
    (folder / "pictures" / "1.png").write_bytes(b"no picture")
    with pytest.raises(CalibrationError, match=r"jsonl:1: picture .*1.png cannot be read \("):
        build_token_set(spec_of(folder, chat(PICTURE)), demo_path())


def test_sets_are_saved_with_their_media_and_damage_is_seen(folder, tmp_path):
    spec = spec_of(folder, chat(PICTURE), chat(), chat(PICTURE, PICTURE))
    assert [path.name for path in source_files(spec)] == ["a.jsonl", "1.png"]
    tokens = build_token_set(spec, demo_path())
    tokens.save(tmp_path / "set")
    loaded = TokenSet.load(tmp_path / "set")
    assert loaded.sha256 == tokens.sha256 == build_token_set(spec, demo_path()).sha256
    batches = loaded.model_inputs(2)
    assert [len(batch["input_ids"]) for batch in batches] == [1, 1, 1]  # three lengths, the shortest without pictures
    assert [len(batch["pixel_values"]) for batch in batches if "pixel_values" in batch] == [1, 2]
    for ours, theirs in zip(tokens.model_inputs(2), batches, strict=True):
        assert set(ours) == set(theirs)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not loaded.has_padding
    with pytest.raises(CalibrationError, match=r"its rows have pictures, .*use --quantizer reference"):
        next(loaded.batches())
    (tmp_path / "set" / "media" / "000000.safetensors").write_bytes(b"x")
    with pytest.raises(CalibrationError, match=r"000000.safetensors: not the file that its token set was written with"):
        [dict(batch) for batch in TokenSet.load(tmp_path / "set").model_inputs(2)]


def test_demo_vision_is_seeded_and_has_pictures():
    spec = CalibrationSpec(source="demo-vision", samples=2, sequence_length=192, seed=3)
    one, same = (build_token_set(spec, demo_path()) for _ in range(2))
    assert one.sha256 == same.sha256
    assert one.sha256 != build_token_set(spec.model_copy(update={"seed": 4}), demo_path()).sha256
    assert all(bool((batch["mm_token_type_ids"] == 1).any()) for batch in one.model_inputs(1))
