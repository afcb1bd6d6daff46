"""A damaged or mixed-up model folder is refused in one line that names the file."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from fourfold.demo import DemoModelError, check_model_folder, model_path
from fourfold.demo.evaluate import load

SHARD = "model-00002-of-00003.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    copied = tmp_path / "model"
    shutil.copytree(model_path(), copied)
    return copied


def refusal(folder: Path) -> str:
    with pytest.raises(DemoModelError) as caught:
        check_model_folder(folder)
    message = str(caught.value)
    assert "\n" not in message
    return message


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_the_committed_folder_is_sound(folder: Path) -> None:
    check_model_folder(model_path())
    check_model_folder(folder)


def test_a_folder_without_weights(folder: Path) -> None:
    for path in (*folder.glob("*.safetensors"), folder / "model.safetensors.index.json"):
        path.unlink()
    assert "no weights (model.safetensors or model.safetensors.index.json)" in refusal(folder)


def test_a_missing_shard(folder: Path) -> None:
    (folder / SHARD).unlink()
    assert f"{SHARD}: named by the index, but not there" in refusal(folder)


@pytest.mark.parametrize("kept_bytes", [0, 5, 100, 8_000_000])
def test_a_truncated_shard(folder: Path, kept_bytes: int) -> None:
    whole = (folder / SHARD).read_bytes()
    (folder / SHARD).write_bytes(whole[:kept_bytes])
    assert f"{SHARD}: not a whole safetensors file" in refusal(folder)


def test_a_shard_with_bytes_to_spare(folder: Path) -> None:
    with (folder / SHARD).open("ab") as file:
        file.write(b"more")
    assert f"{SHARD}: not a whole safetensors file" in refusal(folder)


def test_a_damaged_header(folder: Path) -> None:
    whole = bytearray((folder / SHARD).read_bytes())
    whole[8:12] = b"\xff\xff\xff\xff"
    (folder / SHARD).write_bytes(whole)
    assert f"{SHARD}: not a whole safetensors file" in refusal(folder)


def test_an_index_that_promises_another_tensor(folder: Path) -> None:
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"]["model.invented.weight"] = SHARD
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert f"says that model.invented.weight is in {SHARD}, which does not hold it" in refusal(folder)


@pytest.mark.parametrize("weight_map", [{}, None, []])
def test_an_empty_index(folder: Path, weight_map: object) -> None:
    edit_json(folder / "model.safetensors.index.json", weight_map=weight_map)
    assert "model.safetensors.index.json: no weight_map" in refusal(folder)


def test_an_index_that_leaves_the_folder(folder: Path) -> None:
    edit_json(folder / "model.safetensors.index.json", weight_map={"x": "../elsewhere.safetensors"})
    assert "'../elsewhere.safetensors' is not a file name inside the folder" in refusal(folder)


def test_a_tokenizer_of_another_size(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"].popitem()
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert re.search(r"tokenizer\.json: has 2047 tokens, config\.json expects 2048", refusal(folder))


def test_a_tokenizer_with_other_special_tokens(folder: Path) -> None:
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace("<|image|>", "<image_soft_token>"))
    assert re.search(r"tokenizer\.json: <\|image\|> has id None, config\.json's image_token_id is 19", refusal(folder))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "processor_config.json", "generation_config.json"])
def test_a_missing_or_unreadable_file(folder: Path, name: str) -> None:
    (folder / name).write_text("{")
    assert re.search(rf"{name}: not valid JSON", refusal(folder))
    (folder / name).write_text("[]")
    assert re.search(rf"{name}: expected a JSON object, got list", refusal(folder))
    (folder / name).unlink()
    assert re.search(rf"{name}: missing; a model folder needs it", refusal(folder))


def test_a_missing_chat_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    assert "chat_template.jinja: missing" in refusal(folder)


def test_another_kind_of_model(folder: Path) -> None:
    edit_json(folder / "config.json", model_type="llama")
    assert "config.json: no Gemma 4 model (model_type 'llama')" in refusal(folder)


def test_no_folder_at_all(tmp_path: Path) -> None:
    with pytest.raises(DemoModelError, match=r"nowhere: no such folder"):
        load(tmp_path / "nowhere", "cpu")
