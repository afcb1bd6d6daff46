"""Is this folder a complete Gemma 4 model? Checked from file headers, before anything heavy is imported.

Each failure is one line that names the file: missing weights, a truncated or missing shard, a tensor the index
promises and no shard holds, a tokenizer that is not this model's.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fourfold.demo.tokens import IMAGE, IMAGE_BEGIN, IMAGE_END, VIDEO

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"

#: A safetensors header may not exceed this many bytes (the format's own limit).
_MAX_HEADER_BYTES = 100_000_000

#: config.json's key -> the token that must have this id.
_TOKEN_KEYS = {
    "image_token_id": IMAGE,
    "boi_token_id": IMAGE_BEGIN,
    "eoi_token_id": IMAGE_END,
    "video_token_id": VIDEO,
}


class DemoModelError(ValueError):
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


def _check_shard(path: Path) -> set[str]:
    """The tensor names of a safetensors file whose length is what its header says."""
    if not path.is_file():
        raise DemoModelError(f"{path}: missing; the weight index names this shard")
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        header_bytes = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
        if header_bytes > min(size - 8, _MAX_HEADER_BYTES):
            raise DemoModelError(f"{path}: truncated or no safetensors file ({size} bytes); fetch it again")
        try:
            header = json.loads(file.read(header_bytes))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise DemoModelError(f"{path}: its safetensors header is damaged; fetch it again") from error
    tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
    expected = 8 + header_bytes + max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
    if size != expected:
        raise DemoModelError(f"{path}: truncated: {size} bytes, its header promises {expected}; fetch it again")
    return set(tensors)


def _check_weights(folder: Path) -> None:
    index = folder / INDEX
    if not index.is_file():
        if not (folder / WEIGHTS).is_file():
            raise DemoModelError(f"{folder / INDEX}: missing, and {WEIGHTS} too; the folder has no weights")
        _check_shard(folder / WEIGHTS)
        return
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, Mapping) or not weight_map:
        raise DemoModelError(f"{index}: weight_map is missing or empty")
    for shard in sorted(set(weight_map.values())):
        if Path(shard).name != shard:
            raise DemoModelError(f"{index}: shard {shard!r} does not lie in the model folder")
        held = _check_shard(folder / shard)
        promised = {name for name, file in weight_map.items() if file == shard}
        if promised != held:
            example = sorted(promised ^ held)[0]
            raise DemoModelError(f"{folder / shard}: disagrees with {INDEX} about tensor {example}")


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
    _check_weights(folder)
    _check_tokenizer(folder, config)
    for name in ("processor_config.json", "tokenizer_config.json", "generation_config.json"):
        _read_json(folder / name)
    if not (folder / "chat_template.jinja").is_file():
        raise DemoModelError(f"{folder / 'chat_template.jinja'}: missing; a model folder needs it")
