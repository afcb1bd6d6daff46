"""Calibration files that cannot be used: one line, with the file and the line or row."""

from __future__ import annotations

from pathlib import Path

import pytest

from fourfold.calibration import CalibrationSpec
from fourfold.calibration.sources import read_texts
from fourfold.errors import CalibrationError, UnknownNameError


def read(path: Path | str, **fields: object) -> list[object]:
    return list(read_texts(CalibrationSpec(source=str(path), **fields)))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "a.txt: the file is empty"),
        ("a.txt", b"\n \n", "a.txt: the file is empty"),
        ("a.jsonl", b"", "a.jsonl: the file is empty"),
        ("a.txt", b"good\nbad \xff line\n", r"a.txt:2: not UTF-8 \(byte 0xff at column 5\)"),
        (
            "a.jsonl",
            b'{"text": "x"}\n{"text": \n',
            r"a.jsonl:2: not valid JSON \(Expecting value at column \d+\)",
        ),
        ("a.jsonl", b'\n["x"]\n', "a.jsonl:2: a list, where an object is expected"),
        ("a.jsonl", b'{"id": 1, "body": "x"}', "a.jsonl:1: no field 'text'; found: id, body"),
        ("a.jsonl", b"{}", "a.jsonl:1: no field 'text'; found: none"),
        (
            "a.jsonl",
            b'{"text": 5}',
            "a.jsonl:1: field 'text' holds a int, not a string or a list of chat messages",
        ),
        (
            "a.jsonl",
            b'{"text": [{"role": "user"}]}',
            "a.jsonl:1: field 'text' holds a list, not a string",
        ),
        (
            "a.jsonl",
            b'{"text": "x"}\n{"text": "\\ud83d world"}',
            r"a.jsonl:2: field 'text' has \\ud83d, half of a surrogate pair, which is no character; write both",
        ),
        (
            "a.jsonl",
            b'{"messages": [{"role": "user", "content": "x", "name": "\\uDE00"}]}',
            r"a.jsonl:1: field 'messages' has \\ude00, half of a surrogate pair",
        ),
        (
            "a.jsonl",
            b'{"messages": [{"role": "user", "content": [{"type": "text", "text": "\\ud83d"}]}]}',
            r"a.jsonl:1: field 'messages' has \\ud83d, half of a surrogate pair",
        ),
        (
            "a.jsonl",
            b'{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": null}]}',
            'a.jsonl:1: the content of message 2 is a NoneType, not a string or a list of parts; write "" where',
        ),
        (
            "a.jsonl",
            b'{"messages": [{"role": "user", "content": ["x"]}]}',
            "a.jsonl:1: a content part is a str, not an object with a type",
        ),
        (
            "a.jsonl",
            b'{"messages": [{"role": "user", "content": [{"type": "text"}]}]}',
            'a.jsonl:1: a content part of type text without a string as its "text"',
        ),
        ("a.parquet", b"no parquet", "a.parquet: not a readable Parquet file"),
        ("a.csv", b"x", r"a.csv: not a calibration file; known: .jsonl, .parquet, .txt"),
    ],
)
def test_bad_files(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CalibrationError, match=message) as caught:
        read(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_parquet_columns_and_rows(tmp_path):
    import pyarrow
    from pyarrow import parquet

    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"id": [1, 2], "text": ["x", None]}), path)
    with pytest.raises(CalibrationError, match=r"a.parquet: no field 'article'; found: id, text"):
        read(path, field="article")
    with pytest.raises(CalibrationError, match=r"a.parquet, row 2: field 'text' holds a NoneType"):
        read(path)
    parquet.write_table(pyarrow.table({"text": pyarrow.array([], pyarrow.string())}), path)
    with pytest.raises(CalibrationError, match=r"a.parquet: the file is empty"):
        read(path)


def test_missing_file_and_unknown_name(tmp_path):
    with pytest.raises(CalibrationError, match=r"none.jsonl: no such file"):
        read(tmp_path / "none.jsonl")
    with pytest.raises(UnknownNameError, match="unknown calibration source 'c4'; known: a path, cnn_dailymail, demo"):
        read("c4")
    with pytest.raises(CalibrationError, match="not a calibration file"):
        read(tmp_path)


def test_a_text_file_has_no_fields(tmp_path):
    (tmp_path / "a.txt").write_text("x\n")
    with pytest.raises(CalibrationError, match=r"a .txt file has no fields; leave field 'text' out"):
        read(tmp_path / "a.txt", field="text")


def test_empty_texts_are_left_out_and_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "x"}\r\n{"text": " "}\n{"text": []}\n')
    assert read(tmp_path / "a.jsonl") == ["x"]
    (tmp_path / "a.jsonl").write_bytes('{"text": "one\u2028and one"}\n\n'.encode())
    assert read(tmp_path / "a.jsonl") == ["one\u2028and one"]
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "\\ud83d\\ude00"}')
    assert read(tmp_path / "a.jsonl") == ["\U0001f600"]
