"""Rules about the tokenizer beside the model: what the config calls a token is one, under the same number."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fourfold.verify.checkpoint import Checkpoint
    from fourfold.verify.rule import Look

_TOKENIZER, _CONFIG, _TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
#: Roles of which model and tokenizer each know one token. End of sequence is left out: a model has several.
_ROLES = ("bos", "pad", "image", "audio", "video", "boi", "eoi", "boa", "eoa")
#: How Gemma 4 and its kin spell control tokens: <|turn>, <turn|>, <|image|>, <start_of_turn>.
_MARKER = re.compile(r"<\|[a-z_]{1,32}\|?>|<[a-z_]{1,32}\|>|<(?:start|end)_of_[a-z]{1,16}>")
_MAX_TEMPLATE_BYTES = 2**20


def tokenizer_fits(look: Look, checkpoint: Checkpoint) -> None:
    """No token's number is outside the embedding, and the config's special tokens are the tokenizer's."""
    tokens = _tokens(checkpoint)
    text = checkpoint.config.get("text_config")
    text = text if isinstance(text, Mapping) else checkpoint.config
    if not tokens:
        return
    size = text.get("vocab_size")
    look.count(len(tokens))
    if type(size) is int and max(tokens.values()) >= size:
        worst = max(tokens, key=lambda token: tokens[token])
        look.wrong(
            _TOKENIZER, found=f"{worst!r} is token {tokens[worst]}", expected=f"numbers under {size}",
            message=f"the tokenizer has tokens beyond the model's vocabulary of {size}; it belongs to another model",
        )  # fmt: skip
    spelled = _object(checkpoint, _CONFIG)
    for role in _ROLES:
        key = f"{role}_token_id"
        stated = text.get(key, checkpoint.config.get(key))
        token = spelled.get(f"{role}_token")
        token = token.get("content") if isinstance(token, Mapping) else token
        if type(stated) is not int or not isinstance(token, str):
            continue
        look.count()
        if tokens.get(token, stated) != stated:
            look.wrong(
                f"config.json: {key}", found=stated, expected=f"{tokens[token]}, which is {token!r} in the tokenizer",
                message=f"{key} is {stated}, but the tokenizer's {token!r} is {tokens[token]}: another vocabulary",
            )  # fmt: skip


def template_speaks_tokens(look: Look, checkpoint: Checkpoint) -> None:
    """Every control token that the chat template writes is a token of the tokenizer."""
    tokens, path = _tokens(checkpoint), checkpoint.path / _TEMPLATE
    if not tokens or _TEMPLATE not in checkpoint.folder.files or _TEMPLATE in checkpoint.folder.links:
        return
    try:
        if not path.is_file() or path.stat().st_size > _MAX_TEMPLATE_BYTES:
            return
        written = set(_MARKER.findall(path.read_text(encoding="utf-8", errors="replace")))
    except OSError:
        return
    look.count(len(written))
    for marker in sorted(written - tokens.keys()):
        look.wrong(
            f"{_TEMPLATE}: {marker}", found="no token", expected="a token of tokenizer.json",
            message=f"the chat template writes {marker}, which the tokenizer does not know: another model's template",
        )  # fmt: skip


def _tokens(checkpoint: Checkpoint) -> dict[str, int]:
    """Token -> number, of vocabulary and added tokens; empty where tokenizer.json says neither."""
    content = _object(checkpoint, _TOKENIZER)
    model, added = content.get("model"), content.get("added_tokens")
    vocab = model.get("vocab") if isinstance(model, Mapping) else None
    tokens = {k: v for k, v in vocab.items() if type(v) is int} if isinstance(vocab, dict) else {}
    for entry in added if isinstance(added, list) else ():
        if isinstance(entry, dict) and isinstance(entry.get("content"), str) and type(entry.get("id")) is int:
            tokens[entry["content"]] = entry["id"]
    return tokens


def _object(checkpoint: Checkpoint, name: str) -> Mapping[str, Any]:
    content = checkpoint.content(name)
    return content if isinstance(content, dict) else {}
