"""Rules about the files beside the weights: tokenizer, chat template, processor, generation config."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from fourfold.checkpoint.index import is_side_file
from fourfold.checkpoint.untrusted import MAX_LARGE_JSON_VALUES, read_json
from fourfold.errors import CheckpointError
from fourfold.verify.defaults import image_processor_defaults, processor_defaults
from fourfold.verify.facts import Defaults, Difference, differences, shown

if TYPE_CHECKING:
    from pathlib import Path

    from fourfold.verify.checkpoint import Checkpoint
    from fourfold.verify.folder import Folder
    from fourfold.verify.rule import Look

_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
_TEMPLATES = ("chat_template.jinja", "chat_template.json")
_PROCESSORS = ("processor_config.json", "preprocessor_config.json")
_GENERATION = "generation_config.json"
#: Written anew by every save; no server reads it.
_FREE_KEY = "transformers_version"
_TOKENIZER_CONFIG, _OWN_TOKENS = "tokenizer_config.json", "model_specific_special_tokens"
#: Where a file was loaded from as it was saved again.
_OF_THE_SAVE = frozenset({"is_local", "local_files_only", "name_or_path", "_from_model_config"})
#: Files of settings, and what absent ones mean in each.
_FACTS: dict[str, Callable[[], Defaults]] = {
    _TOKENIZER_CONFIG: Defaults,
    _GENERATION: Defaults,
    "processor_config.json": processor_defaults,
    "preprocessor_config.json": image_processor_defaults,
}
_MAX_KEYS = 5


def tokenizer_present(look: Look, checkpoint: Checkpoint) -> None:
    """There is a tokenizer, with its config."""
    _present(look, checkpoint, _TOKENIZERS, "the tokenizer")
    _present(look, checkpoint, (_TOKENIZER_CONFIG,), "the tokenizer's config")


def template_present(look: Look, checkpoint: Checkpoint) -> None:
    """There is a chat template, of its own or in the tokenizer's config."""
    if not _applies(checkpoint, _TEMPLATES):
        return
    look.count()
    if any(name in checkpoint.folder.files for name in _TEMPLATES) or _template_inside(checkpoint):
        return
    look.wrong(
        _TEMPLATES[0], found="absent", expected="the source's chat template",
        message="there is no chat template; a server cannot take chat requests",
    )  # fmt: skip


def _template_inside(checkpoint: Checkpoint) -> bool:
    content = checkpoint.content(_TOKENIZER_CONFIG)
    return isinstance(content, dict) and bool(content.get("chat_template"))


def processor_present(look: Look, checkpoint: Checkpoint) -> None:
    """A model with a vision tower has its processor's config."""
    if checkpoint.config.get("vision_config") or checkpoint.source is not None:
        _present(look, checkpoint, _PROCESSORS, "the image processor's config")


def generation_present(look: Look, checkpoint: Checkpoint) -> None:
    """There is a generation config (stop tokens, sampling)."""
    _present(look, checkpoint, (_GENERATION,), "the generation config")


def _present(look: Look, checkpoint: Checkpoint, names: tuple[str, ...], what: str) -> None:
    if not _applies(checkpoint, names):
        return
    look.count()
    if not any(name in checkpoint.folder.files for name in names):
        look.wrong(
            names[0],
            found="absent",
            expected=what,
            message=f"{what} is missing ({' or '.join(names)}); copy the source's",
        )


def _applies(checkpoint: Checkpoint, names: tuple[str, ...]) -> bool:
    """Without source and manifest these files are always due; with one of them, when the source has them."""
    if checkpoint.source is not None:
        present: tuple[str, ...] | dict[str, str] = checkpoint.source.folder.files
    elif checkpoint.manifest is not None and checkpoint.manifest.source_files:
        present = checkpoint.manifest.source_files
    else:
        return True
    return any(name in present for name in names)


def side_files_of_source(look: Look, checkpoint: Checkpoint) -> None:
    """Each of these files says what the source's says, and there is none the source does not have."""
    if checkpoint.source is None:
        return
    theirs = checkpoint.source.side_files()
    ours = {name for name in checkpoint.folder.files if is_side_file(name)}
    for name in theirs:
        look.count()
        linked = name in checkpoint.folder.links  # a finding already, and not opened
        if (
            name in ours
            and not linked
            and (other := file_difference(checkpoint.folder, checkpoint.source.folder, name))
        ):
            look.wrong(
                name, found=other.found, expected=other.expected,
                message=f"{name} is not the source's{other.key}: another version's, or another model's; copy the "
                "source's",
            )  # fmt: skip
        known = _TOKENIZERS + _TEMPLATES + _PROCESSORS + (_GENERATION, _TOKENIZER_CONFIG)
        if name not in ours and name not in known:
            look.wrong(
                name, found="absent", expected="the source's file", message=f"{name} was left behind; copy the source's"
            )
    for name in sorted(ours - set(theirs)):
        look.wrong(
            name, found="a file the source does not have", expected="no such file",
            message=f"{name} is not the source's: it comes from another model; remove it",
        )  # fmt: skip


def file_difference(ours: Folder, theirs: Folder, name: str) -> Difference | None:
    """None where two files are the same byte for byte, or JSON of the same facts."""
    first, second = ours.sha256(name), theirs.sha256(name)
    if first == second and not first.startswith("("):
        return None
    bytewise = Difference("", f"sha256 {first[:16]}", f"sha256 {second[:16]}")
    try:
        if name in _FACTS:
            return _fact_difference(ours.path / name, theirs.path / name)
        # One after the other: a large tokenizer takes half a gigabyte once parsed.
        equal = name.endswith(".json") and _canonical(ours.path / name) == _canonical(theirs.path / name)
    except CheckpointError:
        return bytewise
    return None if equal else bytewise


def _fact_difference(ours: Path, theirs: Path) -> Difference | None:
    """The first fact in which two files of settings differ; what their classes take by default is none."""
    defaults = _FACTS[ours.name]()
    first, second = (_settings(read_json(path)) for path in (ours, theirs))
    found = list(differences(first, second, defaults))
    keys = ", ".join(one.key for one in found[:_MAX_KEYS]) + (", ..." if len(found) > _MAX_KEYS else "")
    return Difference(f" in {keys}", shown(found[0].found), shown(found[0].expected)) if found else None


def _settings(content: Any) -> dict[str, Any]:
    """Without what tells of the save; a tokenizer's own tokens stand at the top, and may stand in a list as well."""
    if not isinstance(content, Mapping):
        raise CheckpointError("not a JSON object")
    settings = {key: value for key, value in content.items() if key not in _OF_THE_SAVE}
    if isinstance(listed := settings.get(_OWN_TOKENS), Mapping):
        merged = {key: settings.get(key, value) for key, value in listed.items()}
        if merged == listed:
            del settings[_OWN_TOKENS]
            settings |= merged
    return settings


def _canonical(path: Path) -> str:
    content = read_json(path, max_values=MAX_LARGE_JSON_VALUES)
    if isinstance(content, dict):
        content.pop(_FREE_KEY, None)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
