from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fourfold.calibration import CalibrationSpec, Packing, TokenSet, build_token_set
from fourfold.errors import CalibrationError, ConfigError

from .conftest import spec_for

PAD, BOS, EOS, FIRST_WORD = 0, 1, 2, 3


def write_jsonl(path: Path, rows: list[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_defaults_are_the_published_ones():
    spec = CalibrationSpec()
    published = (spec.source, spec.samples, spec.sequence_length, spec.batch_size, spec.chat_template)
    assert published == ("cnn_dailymail", 4096, 1024, 16, False)
    assert spec.packing is Packing.CONCATENATE


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples": 0}, r"calibration.samples: .*greater than or equal to 1 \(given: 0\)"),
        ({"sequence_length": 1}, "calibration.sequence_length: .*greater than or equal to 2"),
        ({"lenght": 5}, "calibration.lenght: unknown key"),
        ({"packing": "pad"}, "calibration.packing: .*'concatenate' or 'truncate'"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        spec_for("x.txt", **changes)


def test_concatenated_rows_are_full_and_begin_with_a_text(model_path, lines):
    tokens = build_token_set(spec_for(lines), model_path)
    assert (tokens.input_ids.dtype, tuple(tokens.input_ids.shape), len(tokens)) == (torch.int32, (6, 8), 6)
    assert not tokens.has_padding
    assert tokens.num_tokens == tokens.record.num_tokens == 48
    for row in tokens.input_ids.tolist():
        assert row[0] == BOS
        starts = [i for i, token in enumerate(row) if token == BOS]
        for start, end in zip(starts, [*starts[1:], 8], strict=True):
            body = row[start + 1 : end]  # one word repeated, as every text of the file is
            assert len(set(body)) <= 1
            if end < 8:
                assert len(body) == 1 + (body[0] - FIRST_WORD) % 20  # whole unless the row ends
    masks = [batch.attention_mask for batch in tokens.batches()]
    assert [tuple(mask.shape) for mask in masks] == [(4, 8), (2, 8)]
    assert all(mask.all() for mask in masks)


def test_truncated_rows_are_one_text_each(model_path, lines):
    tokens = build_token_set(spec_for(lines, packing="truncate", samples=40), model_path)
    expected = sorted(min(8, 2 + i % 20) for i in range(40))
    assert sorted(tokens.lengths.tolist()) == expected
    assert tokens.has_padding
    for row, length in zip(tokens.input_ids.tolist(), tokens.lengths.tolist(), strict=True):
        assert row[0] == BOS
        assert PAD not in row[:length]
        assert set(row[length:]) <= {PAD}


def test_truncated_batches_are_trimmed_and_masked(model_path, tmp_path):
    path = tmp_path / "short.txt"
    path.write_text("w1\nw1 w1 w1\n")
    tokens = build_token_set(spec_for(path, packing="truncate", samples=2), model_path)
    (batch,) = tokens.batches()
    assert batch.input_ids.dtype == batch.attention_mask.dtype == torch.int64
    assert tuple(batch.input_ids.shape) == (2, 4)
    assert torch.equal(batch.attention_mask, (batch.input_ids != PAD).long())
    assert sorted(batch.attention_mask.sum(1).tolist()) == [2, 4]
    with pytest.raises(ValueError, match="batch_size must be 1 or more, not 0"):
        next(tokens.batches(0))


def test_same_seed_same_tokens_and_another_seed_others(model_path, lines):
    one, same, other = (build_token_set(spec_for(lines, seed=seed), model_path) for seed in (3, 3, 4))
    assert torch.equal(one.input_ids, same.input_ids)
    assert one.record == same.record
    assert one.sha256 == same.sha256 != other.sha256
    assert not torch.equal(one.input_ids, other.input_ids)
    assert one.record.texts_sha256 != other.record.texts_sha256


def test_hashes_see_the_tokenizer_and_the_texts_used(model_path, lines, tmp_path):
    import shutil

    changed = shutil.copytree(model_path, tmp_path / "changed")
    (changed / "chat_template.jinja").write_text("another")
    one, other = build_token_set(spec_for(lines), model_path), build_token_set(spec_for(lines), changed)
    assert one.record.tokenizer_sha256 != other.record.tokenizer_sha256
    assert one.record.tokens_sha256 == other.record.tokens_sha256
    path = tmp_path / "one.txt"
    path.write_text("w1 w1\n")
    record = build_token_set(spec_for(path, samples=1, sequence_length=2), model_path).record
    canonical = b'"w1 w1"'
    assert record.texts_sha256 == hashlib.sha256(len(canonical).to_bytes(8, "little") + canonical).hexdigest()
    assert record.num_texts == 1


def test_all_file_kinds_give_the_same_tokens(model_path, lines, tmp_path):
    import pyarrow
    from pyarrow import parquet

    texts = lines.read_text().splitlines()
    jsonl = write_jsonl(tmp_path / "texts.jsonl", [{"article": text, "id": 1} for text in texts])
    parquet.write_table(pyarrow.table({"article": texts}), tmp_path / "texts.parquet")
    expected = build_token_set(spec_for(lines), model_path).input_ids
    for path in (jsonl, tmp_path / "texts.parquet"):
        tokens = build_token_set(spec_for(path, field="article"), model_path)
        assert torch.equal(tokens.input_ids, expected)


def test_chat_messages_are_rendered_and_plain_texts_on_request(model_path, tmp_path):
    chat = [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2"}]
    path = write_jsonl(tmp_path / "chat.jsonl", [{"text": chat}])
    tokens = build_token_set(spec_for(path, samples=1, packing="truncate", sequence_length=16), model_path)
    user, assistant, colon = 203, 204, 205
    rendered = [BOS, user, colon, 4, EOS, assistant, colon, 5, EOS]
    assert tokens.input_ids[0, : tokens.lengths[0]].tolist() == rendered
    plain = tmp_path / "plain.txt"
    plain.write_text("w1\n")
    spec = spec_for(plain, samples=1, packing="truncate", sequence_length=16, chat_template=True)
    tokens = build_token_set(spec, model_path)
    assert tokens.input_ids[0, : tokens.lengths[0]].tolist() == rendered[:5]


def test_a_chat_without_a_template_is_refused(model_path, lines, tmp_path):
    import shutil

    bare = shutil.copytree(model_path, tmp_path / "bare")
    (bare / "chat_template.jinja").unlink()
    with pytest.raises(CalibrationError, match=f"{bare}: its tokenizer has no chat template; give plain texts"):
        build_token_set(spec_for(lines, chat_template=True), bare)


def test_demo_problems_are_chats_and_prose_of_the_training_split(model_path):
    from fourfold.calibration.sources import read_texts

    texts = [text for text, _ in zip(read_texts(spec_for("demo")), range(60), strict=False)]
    again = [text for text, _ in zip(read_texts(spec_for("demo")), range(60), strict=False)]
    assert texts == again
    chats = [text for text in texts if not isinstance(text, str)]
    assert 0 < len(chats) < 60
    assert all([turn["role"] for turn in chat.messages][-2:] == ["user", "assistant"] for chat in chats)
    tokens = build_token_set(spec_for("demo"), model_path)
    assert not tokens.has_padding


def test_hub_data_set_is_streamed_shuffled_and_picked(model_path, monkeypatch):
    import datasets

    calls = []

    def load_dataset(*args, **kwargs):
        calls.append((args, kwargs))
        rows = [{"article": f"w{i} w{i} w{i}", "highlights": "w199", "id": str(i)} for i in range(40)]
        return datasets.IterableDataset.from_generator(lambda: iter(rows))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    one, same, other = (
        build_token_set(spec_for("cnn_dailymail", seed=seed), model_path).input_ids for seed in (1, 1, 2)
    )
    assert calls[0] == (("abisee/cnn_dailymail", "3.0.0"), {"split": "train", "streaming": True})
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert 199 + FIRST_WORD not in one
    with pytest.raises(CalibrationError, match="abisee/cnn_dailymail, row 1: no field 'body'; found: article, highl"):
        build_token_set(spec_for("cnn_dailymail", field="body"), model_path)


def test_hub_out_of_reach_says_to_pass_a_file(model_path):
    script = (
        "import sys; from pathlib import Path; from fourfold.calibration import *\n"
        "build_token_set(CalibrationSpec(samples=1, sequence_length=8), Path(sys.argv[1]))"
    )
    child = os.environ | {"HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", script, str(model_path)]
    result = subprocess.run(command, env=child, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert "CalibrationError: abisee/cnn_dailymail: the hub cannot be reached (ConnectionError: " in last
    assert last.endswith("pass a local .jsonl, .parquet or .txt file instead")


def test_save_and_load(model_path, lines, tmp_path):
    tokens = build_token_set(spec_for(lines, packing="truncate"), model_path)
    tokens.save(tmp_path / "set")
    loaded = TokenSet.load(tmp_path / "set")
    assert torch.equal(loaded.input_ids, tokens.input_ids)
    assert torch.equal(loaded.lengths, tokens.lengths)
    assert loaded.record == tokens.record
    assert loaded.sha256 == tokens.sha256
    record = json.loads((tmp_path / "set" / "tokens.json").read_text())
    assert record["spec"]["packing"] == "truncate"
    assert record["version"] == 1


def test_damaged_token_sets_are_refused(model_path, lines, tmp_path):
    folder = tmp_path / "set"
    with pytest.raises(CalibrationError, match=r"no token set \(.*tokens.json is missing\)"):
        TokenSet.load(folder)
    build_token_set(spec_for(lines), model_path).save(folder)
    build_token_set(spec_for(lines, seed=9), model_path).save(tmp_path / "other")
    (folder / "tokens.safetensors").write_bytes((tmp_path / "other" / "tokens.safetensors").read_bytes())
    with pytest.raises(CalibrationError, match=r"its tokens are not those tokens.json was written for"):
        TokenSet.load(folder)
    (folder / "tokens.safetensors").write_bytes(b"12345678")
    with pytest.raises(CalibrationError, match=r"tokens.safetensors: not a token set \("):
        TokenSet.load(folder)
    (folder / "tokens.safetensors").unlink()
    with pytest.raises(CalibrationError, match=r"no token set \(.*tokens.safetensors"):
        TokenSet.load(folder)
    (folder / "tokens.json").write_text("{}")
    with pytest.raises(CalibrationError, match=r"tokens.json: spec: Field required"):
        TokenSet.load(folder)


@pytest.mark.parametrize(
    ("ids", "lengths", "error", "message"),
    [
        (
            torch.zeros(2, 4),
            torch.ones(2, dtype=torch.int32),
            TypeError,
            "input_ids must be int32, not torch.float32",
        ),
        (
            torch.zeros(2, 4).int(),
            torch.ones(3).int(),
            ValueError,
            r"lengths has shape \[3\]; expected \[N\]",
        ),
        (
            torch.zeros(0, 4).int(),
            torch.ones(0).int(),
            ValueError,
            r"input_ids has shape \[0, 4\]; expected \[N, T\]",
        ),
        (torch.zeros(2, 4).int(), torch.tensor([1, 5]).int(), ValueError, "lengths must be from 1 to 4"),
        (torch.zeros(2, 4).int(), torch.tensor([1, 0]).int(), ValueError, "lengths must be from 1 to 4"),
    ],
)
def test_rows_that_contradict_themselves_are_refused(model_path, lines, ids, lengths, error, message):
    record = build_token_set(spec_for(lines), model_path).record
    with pytest.raises(error, match=message):
        TokenSet(ids, lengths, record)


def test_progress_counts_rows(model_path, lines):
    class Recorder:
        def __init__(self) -> None:
            self.events: list[tuple[object, ...]] = []

        def begin(self, task, *, total, unit):
            self.events.append((task, total, unit))

        def advance(self, amount=1):
            self.events.append((amount,))

    recorder = Recorder()
    build_token_set(spec_for(lines), model_path, recorder)
    assert recorder.events == [("calibration tokens", 6, "row"), *[(1,)] * 6]
