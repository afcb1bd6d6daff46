"""Texts to rows of tokens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from fourfold.calibration.picture_rows import PROCESSOR_FILES, PictureRows
from fourfold.calibration.pictures import Chat, PictureChat
from fourfold.calibration.sources import Text, read_texts
from fourfold.calibration.spec import CalibrationSpec, Packing
from fourfold.calibration.tokens import TokenSet, TokenSetRecord, tokens_sha256
from fourfold.checkpoint.untrusted import printable, read_json
from fourfold.errors import CalibrationError, CheckpointError
from fourfold.progress import NoProgress

if TYPE_CHECKING:
    from fourfold.progress import Progress

#: Everything that decides how a text becomes tokens.
_TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "*.jinja",
)


def build_token_set(
    spec: CalibrationSpec, model_path: Path, progress: Progress | None = None, folder: Path | None = None
) -> TokenSet:
    """Tokenize ``spec``'s texts with ``model_path``'s tokenizer; the same arguments give the same tokens.

    Rows with pictures are written into ``folder`` as they are made, a temporary one by default; there
    :meth:`TokenSet.save` finds them.

    Raises:
        CalibrationError: texts that cannot be read or are too few (the message says how many rows there are),
            a sequence longer than the model's, no tokenizer, chat template or processor where one is needed.
    """
    _check_sequence_length(spec, model_path)
    progress = progress or NoProgress()
    texts = read_texts(spec)
    first = next(texts, "")
    if isinstance(first, PictureChat):
        chats = cast("Iterator[PictureChat]", chain([first], texts))
        progress.begin("calibration tokens", total=spec.samples, unit="row")
        return _picture_set(spec, PictureRows(spec, chats, model_path, folder, progress), model_path)
    return _text_set(spec, chain([first], texts), model_path, progress)


def _picture_set(spec: CalibrationSpec, rows: PictureRows, model_path: Path) -> TokenSet:
    if rows.found < spec.samples:
        raise CalibrationError(f"{spec.source}: {rows.found} chats, not {spec.samples}; ask for fewer samples")
    record = TokenSetRecord(
        spec=spec,
        num_texts=rows.found,
        num_tokens=int(rows.lengths.sum()),
        texts_sha256=rows.texts_sha256,
        tokenizer_sha256=_tokenizer_sha256(model_path, (*_TOKENIZER_FILES, *PROCESSOR_FILES)),
        tokens_sha256=tokens_sha256(rows.input_ids, rows.lengths, rows.media.sha256),
    )
    return TokenSet(rows.input_ids, rows.lengths, record, rows.media)


def _text_set(spec: CalibrationSpec, texts: Iterable[Text], model_path: Path, progress: Progress) -> TokenSet:
    import torch

    encoder = _Encoder(spec, texts, model_path)
    rows = _concatenated(encoder, spec) if spec.packing is Packing.CONCATENATE else _truncated(encoder, spec)
    progress.begin("calibration tokens", total=spec.samples, unit="row")
    input_ids = torch.full((spec.samples, spec.sequence_length), encoder.pad_id, dtype=torch.int32)
    lengths = torch.zeros(spec.samples, dtype=torch.int32)
    found = 0
    for row in rows:
        input_ids[found, : len(row)] = torch.tensor(row, dtype=torch.int32)
        lengths[found] = len(row)
        found += 1
        progress.advance(1)
        if found == spec.samples:
            break
    if found < spec.samples:
        raise CalibrationError(
            f"{spec.source}: {encoder.num_texts} texts make {found} rows of {spec.sequence_length} tokens, "
            f"not {spec.samples}; ask for fewer samples, a shorter sequence, or give more text"
        )
    record = TokenSetRecord(
        spec=spec,
        num_texts=encoder.num_texts,
        num_tokens=int(lengths.sum()),
        texts_sha256=encoder.texts_sha256,
        tokenizer_sha256=_tokenizer_sha256(model_path, _TOKENIZER_FILES),
        tokens_sha256=tokens_sha256(input_ids, lengths),
    )
    return TokenSet(input_ids, lengths, record)


class _Encoder:
    """Tokenizes texts one by one, and hashes those that were used."""

    def __init__(self, spec: CalibrationSpec, texts: Iterable[Text], model_path: Path) -> None:
        from transformers import AutoTokenizer

        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(model_path, trust_remote_code=False)
        except Exception as error:  # a broken tokenizer.json is a plain Exception, and more
            reason = printable(" ".join(str(error).split()), 200)
            raise CalibrationError(f"{model_path}: no usable tokenizer ({reason})") from error
        pad_id = self._tokenizer.pad_token_id
        self.pad_id = int(self._tokenizer.eos_token_id or 0) if pad_id is None else int(pad_id)
        self.num_texts = 0
        self._spec, self._texts, self._model_path = spec, texts, model_path
        self._hash = hashlib.sha256()

    @property
    def texts_sha256(self) -> str:
        return self._hash.hexdigest()

    def __iter__(self) -> Iterator[list[int]]:
        for text in self._texts:
            content = text if isinstance(text, str) else text.messages
            canonical = json.dumps(content, ensure_ascii=False, sort_keys=True).encode()
            self._hash.update(len(canonical).to_bytes(8, "little") + canonical)
            self.num_texts += 1
            yield self._encode(text)

    def _encode(self, text: Text) -> list[int]:
        if isinstance(text, str) and not self._spec.chat_template:
            encoded = self._tokenizer(text, verbose=False)
            return list(encoded["input_ids"])
        chat = Chat([{"role": "user", "content": text}], self._spec.source) if isinstance(text, str) else text
        if not self._tokenizer.chat_template:
            raise CalibrationError(f"{self._model_path}: its tokenizer has no chat template; give plain texts")
        try:
            rendered = self._tokenizer.apply_chat_template(chat.messages, tokenize=False)
        except Exception as error:  # a template is a program, and may fail in any way
            reason = printable(" ".join(str(error).split()), 200)
            raise CalibrationError(
                f"{chat.where}: the model's chat template does not take this chat ({reason})"
            ) from error
        # the template writes BOS itself
        return list(self._tokenizer(rendered, add_special_tokens=False, verbose=False)["input_ids"])


def _concatenated(encoder: _Encoder, spec: CalibrationSpec) -> Iterator[list[int]]:
    row: list[int] = []
    for ids in encoder:
        row += ids[: spec.sequence_length - len(row)]
        if len(row) == spec.sequence_length:
            yield row
            row = []


def _truncated(encoder: _Encoder, spec: CalibrationSpec) -> Iterator[list[int]]:
    for ids in encoder:
        if ids:
            yield ids[: spec.sequence_length]


def _check_sequence_length(spec: CalibrationSpec, model_path: Path) -> None:
    path = model_path / "config.json"
    try:
        config = read_json(path)
    except CheckpointError as error:
        raise CalibrationError(f"{path}: cannot be read ({str(error).removeprefix(f'{path}: ')})") from None
    text = config.get("text_config", config) if isinstance(config, dict) else None
    limit = text.get("max_position_embeddings") if isinstance(text, dict) else None
    if isinstance(limit, int) and spec.sequence_length > limit:
        raise CalibrationError(
            f"sequence length {spec.sequence_length} is longer than the model's {limit} "
            f"(max_position_embeddings in {path})"
        )


def _tokenizer_sha256(model_path: Path, patterns: Iterable[str]) -> str:
    digest = hashlib.sha256()
    names = {file.name for pattern in patterns for file in model_path.glob(pattern) if file.is_file()}
    for name in sorted(names):
        data = (model_path / name).read_bytes()
        digest.update(f"{name}:{len(data)}:".encode() + data)
    return digest.hexdigest()
