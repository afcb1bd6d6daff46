"""A model's name as users give it: ``demo``, a folder, or a hub id."""

from __future__ import annotations

import re
from pathlib import Path

from fourfold.errors import ModelError, first_line

_HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+$")
#: What of a hub repository is fetched; pickles and other formats stay where they are.
_HUB_FILES = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt")


def resolve_model(name: str) -> Path:
    """The model's folder; a hub id is fetched into the hub's cache. :class:`ModelError` says what was tried."""
    if name == "demo":
        from fourfold.demo import model_path

        return model_path()
    folder = Path(name)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise ModelError(f"{name}: a file, not a model folder")
    if not _HUB_ID.match(name):
        raise ModelError(f"{name}: no such model; give 'demo', a folder, or a hub id such as google/gemma-4-26B-A4B-it")
    return _fetch(name)


def resolve_config(name: str) -> Path:
    """The ``config.json`` of a hub id, alone; :class:`ModelError` says what was tried."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    if not _HUB_ID.match(name):
        raise ModelError(f"{name}: no such model; give 'demo', a folder, or a hub id such as google/gemma-4-26B-A4B-it")
    try:
        return Path(hf_hub_download(name, "config.json"))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = first_line(error)[:160]
        raise ModelError(f"{name}: no folder of that name, and the hub gave no config.json ({reason})") from None


def _fetch(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=list(_HUB_FILES)))
    except RepositoryNotFoundError:
        raise ModelError(f"{name}: no such model: no folder of that name, and the hub does not know it") from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = first_line(error)[:160]
        raise ModelError(f"{name}: no folder of that name, and the hub could not be reached ({reason})") from None
