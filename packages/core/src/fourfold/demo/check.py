"""Is this folder a complete Gemma 4 model? Checked from file headers, before anything heavy is imported.

Each failure is one line that names the file: missing weights, a truncated or missing shard, a tensor the index
promises and no shard holds, a tokenizer that is not this model's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fourfold.checkpoint.index import TensorFolder
from fourfold.demo.tokens import IMAGE, IMAGE_BEGIN, IMAGE_END, VIDEO
from fourfold.errors import CheckpointError, ModelError

#: config.json's key -> the token that must have this id.
_TOKEN_KEYS = {
    "image_token_id": IMAGE,
    "boi_token_id": IMAGE_BEGIN,
    "eoi_token_id": IMAGE_END,
    "video_token_id": VIDEO,
}


class DemoModelError(ModelError):
    """A model folder is incomplete or inconsistent; the message names the file."""


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise DemoModelError(f"{path}: missing; a model folder needs it")
    try:
        content = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DemoModelError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise DemoModelError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def _check_tokenizer(folder: Path, config: Mapping[str, Any]) -> None:
    path = folder / "tokenizer.json"
    tokenizer = _read_json(path)
    ids = dict(tokenizer.get("model", {}).get("vocab", {}))
    ids.update({token["content"]: token["id"] for token in tokenizer.get("added_tokens", [])})
    expected = config["text_config"].get("vocab_size")
    if len(ids) != expected:
        raise DemoModelError(
            f"{path}: has {len(ids)} tokens, config.json expects {expected}: another model's tokenizer"
        )
    for key, token in _TOKEN_KEYS.items():
        if key in config and ids.get(token) != config[key]:
            raise DemoModelError(
                f"{path}: {token} has id {ids.get(token)}, config.json's {key} is {config[key]}: "
                "another model's tokenizer"
            )


def check_model_folder(folder: str | Path) -> None:
    """Refuse a folder that Transformers could not load as it should, or could load only to answer nonsense.

    Raises:
        DemoModelError: the folder, or one of its files, is missing, damaged or another model's.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DemoModelError(f"{folder}: no such folder")
    config = _read_json(folder / "config.json")
    if config.get("model_type") != "gemma4" or not isinstance(config.get("text_config"), Mapping):
        raise DemoModelError(f"{folder / 'config.json'}: no Gemma 4 model (model_type {config.get('model_type')!r})")
    try:
        TensorFolder(folder)
    except CheckpointError as error:
        raise DemoModelError(str(error)) from None
    _check_tokenizer(folder, config)
    for name in ("processor_config.json", "tokenizer_config.json", "generation_config.json"):
        _read_json(folder / name)
    if not (folder / "chat_template.jinja").is_file():
        raise DemoModelError(f"{folder / 'chat_template.jinja'}: missing; a model folder needs it")
