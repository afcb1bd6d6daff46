"""Broken and hostile input: a finding or one of our own errors, never a crash, never a read outside the folder."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fourfold.checkpoint.layouts import COMPRESSED_TENSORS, MODELOPT
from fourfold.checkpoint.untrusted import read_json
from fourfold.errors import CheckpointError, ModelError
from fourfold.verify import verify_checkpoint
from fourfold.verify.expected import imagine_source
from fourfold.verify.shards import TensorReader, read_header

from .good_checkpoints import Editable, Variant

LAYOUTS = (MODELOPT.name, COMPRESSED_TENSORS.name)
RELAXED = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere: no such folder"):
        verify_checkpoint(tmp_path / "nowhere")


def test_an_empty_folder_is_all_findings(tmp_path: Path) -> None:
    report = verify_checkpoint(tmp_path)
    assert {"FF001", "FF011"} <= report.num_findings.keys()


def test_source_without_weights(tmp_path: Path, good: Callable[[Variant], Path]) -> None:
    with pytest.raises(CheckpointError, match="no weights"):
        verify_checkpoint(good(Variant(MODELOPT.name)), source=tmp_path)


def test_source_that_is_quantized_itself(good: Callable[[Variant], Path]) -> None:
    folder = good(Variant(MODELOPT.name))
    with pytest.raises(ModelError, match="already quantized"):
        verify_checkpoint(folder, source=folder)


def test_truncated_source(tmp_path: Path, source: Path, good: Callable[[Variant], Path]) -> None:
    content = (source / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content[:-100])
    (tmp_path / "config.json").write_bytes((source / "config.json").read_bytes())
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        verify_checkpoint(good(Variant(MODELOPT.name)), source=tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_pipe_in_the_place_of_a_file_does_not_block(name: str, editable: Callable[..., Editable]) -> None:
    folder = editable(Variant(MODELOPT.name)).folder
    (folder / name).unlink()
    os.mkfifo(folder / name)
    report = verify_checkpoint(folder)
    assert {"FF002", "FF011"} & report.num_findings.keys()


def test_a_link_to_itself(editable: Callable[..., Editable]) -> None:
    folder = editable(Variant(MODELOPT.name)).folder
    (folder / "loop.json").symlink_to(folder / "loop.json")
    verify_checkpoint(folder)


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path, good: Callable[[Variant], Path]) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes((good(Variant(MODELOPT.name)) / "model.safetensors").read_bytes())
    last = max(read_header(path).tensors, key=lambda tensor: tensor.begin)
    os.truncate(path, last.begin)
    with TensorReader(tmp_path, {}) as reader, pytest.raises(CheckpointError, match=f"ends inside {last.name}"):
        reader.read(last)


def test_json_that_is_too_large(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with path.open("wb") as file:
        file.truncate(2**30)
    with pytest.raises(CheckpointError, match=r"config\.json: 1073741824 bytes of JSON; the limit"):
        read_json(path)


@pytest.mark.parametrize("depth", [33, 400, 900, 100_000])
def test_json_that_is_nested_deep(depth: int, editable: Callable[..., Editable]) -> None:
    folder = editable(Variant(MODELOPT.name)).folder
    (folder / "config.json").write_text('{"a":' * depth + "1" + "}" * depth, encoding="utf-8")
    assert "FF011" in verify_checkpoint(folder).num_findings
    nest = '{"x":{"dtype":"U8","data_offsets":[0,1],"shape":' + "[" * depth + "]" * depth + "}}"
    (folder / "model.safetensors").write_bytes(len(nest).to_bytes(8, "little") + nest.encode() + b"0")
    assert "FF002" in verify_checkpoint(folder).num_findings


def test_a_card_a_licence_and_hidden_files_are_no_fault(editable: Callable[..., Editable]) -> None:
    folder = editable(Variant(MODELOPT.name), manifest=True).folder
    for name in ("README.md", "LICENSE", ".gitattributes", ".cache/huggingface/download/x.metadata"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x", encoding="utf-8")
    assert verify_checkpoint(folder).ok


def test_a_number_of_many_digits(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"a": ' + "9" * 10_000 + "}", encoding="utf-8")
    with pytest.raises(CheckpointError, match="not valid JSON"):
        read_json(tmp_path / "config.json")


def test_a_shape_too_large_to_read_is_not_read(editable: Callable[..., Editable]) -> None:
    """A sparse file can honestly hold terabytes; its header then does not lie, and memory must not follow it."""
    checkpoint = editable(Variant(MODELOPT.name))
    path = checkpoint.folder / "model.safetensors"
    name = "model.language_model.layers.0.mlp.up_proj.weight"
    header = {name: {"dtype": "U8", "shape": [2**40], "data_offsets": [0, 2**40]}, "__metadata__": {"format": "pt"}}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(path, 8 + len(text) + 2**40)
    report = verify_checkpoint(checkpoint.folder)
    assert report.bytes_read == 0
    assert not report.ok


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 10**6}, "no such model is known"),
        ({"num_experts": 0}, r"text_config\.num_experts is 0"),
        ({"hidden_size": "64"}, r"text_config\.hidden_size is '64'"),
        ({"hidden_size": None}, r"text_config\.hidden_size is None"),
        ({"layer_types": []}, "layer_types does not list every layer"),
        ({"enable_moe_block": False}, "a dense Gemma 4 model"),
    ],
)
def test_config_that_describes_no_model(change: dict[str, Any], message: str, source_config: dict[str, Any]) -> None:
    config = copy.deepcopy(source_config)
    config["text_config"] |= change
    with pytest.raises(ModelError, match=message):
        imagine_source(config, Path("config.json"))


def test_the_config_alone_tells_names_and_shapes(source: Path, source_config: dict[str, Any]) -> None:
    actual = {tensor.name: tensor.shape for tensor in read_header(source / "model.safetensors").tensors}
    imagined = {tensor.name: tensor.shape for tensor in imagine_source(source_config, source).tensors.values()}
    assert imagined == actual


@RELAXED
@given(data=st.data())
def test_any_bytes_in_a_header(data: st.DataObject, good: Callable[[Variant], Path], tmp_path: Path) -> None:
    content = bytearray((good(Variant(MODELOPT.name)) / "model.safetensors").read_bytes())
    length = int.from_bytes(content[:8], "little")
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, 8 + length - 1))
        content[position] = data.draw(st.integers(0, 255))
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    header = read_header(path)
    end = path.stat().st_size
    assert all(tensor.begin >= 0 and tensor.begin + tensor.nbytes <= end for tensor in header.tensors)


@RELAXED
@given(entry=JSON)
def test_any_json_as_a_header_entry(entry: object, tmp_path: Path) -> None:
    text = json.dumps({"x": entry, "y": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"1234")
    assert [tensor.name for tensor in read_header(path).tensors if tensor.name == "y"] == ["y"]


@RELAXED
@given(data=st.data())
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_json_in_the_place_of_a_config_value(
    layout: str, data: st.DataObject, good: Callable[[Variant], Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever stands in config.json, it is a finding."""
    folder = tmp_path_factory.mktemp("fuzz")
    for path in good(Variant(layout)).iterdir():
        if path.suffix == ".json" and path.name != "manifest.json":
            (folder / path.name).write_bytes(path.read_bytes())
    # Headers only: the tensors' data is a hole in the file.
    shard = good(Variant(layout)) / "model.safetensors"
    head = shard.read_bytes()
    head = head[: 8 + int.from_bytes(head[:8], "little")]
    (folder / "model.safetensors").write_bytes(head)
    os.truncate(folder / "model.safetensors", shard.stat().st_size)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    place: Any = config
    key = data.draw(st.sampled_from(sorted(place)))
    while isinstance(place[key], dict) and place[key] and data.draw(st.booleans()):
        place = place[key]
        key = data.draw(st.sampled_from(sorted(place)))
    place[key] = data.draw(JSON)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert not verify_checkpoint(folder).ok
