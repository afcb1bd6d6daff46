"""Rules about manifest.json: what it records is what the folder is. A checkpoint without one is not at fault."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fourfold.checkpoint.index import CONFIG_FILE, is_side_file
from fourfold.config import KVCache
from fourfold.manifest import MANIFEST_FILE, Fate, Manifest
from fourfold.verify.config import states_fp8_kv
from fourfold.verify.schemes import scheme_text

if TYPE_CHECKING:
    from fourfold.verify.checkpoint import Checkpoint
    from fourfold.verify.rule import Look


#: What a publisher adds beside a finished checkpoint, with the model card (``*.md``).
_PUBLISHED = ("LICENSE", "NOTICE", "USE_POLICY")


def may_be_added(name: str) -> bool:
    """Whether a file may join a finished checkpoint without a record: a card, a licence."""
    return name.startswith(_PUBLISHED) or name.endswith(".md")


def _manifest(checkpoint: Checkpoint) -> Manifest:
    if checkpoint.manifest is None:
        raise ValueError("a manifest rule was called without a manifest")
    return checkpoint.manifest


def manifest_belongs(look: Look, checkpoint: Checkpoint) -> None:
    """The manifest is of a checkpoint, in the layout of the tensors."""
    manifest = _manifest(checkpoint)
    look.count()
    layout = checkpoint.layout.name if checkpoint.layout else "none"
    if manifest.kind != "checkpoint" or manifest.layout != layout:
        look.wrong(
            MANIFEST_FILE, found=f"a {manifest.kind} in layout {manifest.layout}", expected=f"a checkpoint in {layout}",
            message="manifest.json belongs to another folder",
        )  # fmt: skip


def file_hashes(look: Look, checkpoint: Checkpoint) -> None:
    """Every file has the recorded sha256; none is missing, and none but a card or licence was added."""
    recorded = _manifest(checkpoint).files
    present = {name for name in checkpoint.folder.files if name != MANIFEST_FILE}
    for name, digest in recorded.items():
        look.count()
        if name not in present:
            look.wrong(
                name, found="absent", expected=f"sha256 {digest[:16]}", message=f"{name} is recorded but not there"
            )
            continue
        found = checkpoint.folder.sha256(name)
        if found != digest:
            look.wrong(
                name, found=f"sha256 {found[:16]}", expected=f"sha256 {digest[:16]}",
                message=f"{name} was changed or damaged after it was written",
            )  # fmt: skip
    for name in sorted(present - recorded.keys()):
        if may_be_added(name):
            continue
        look.wrong(
            name, found="a file that is not recorded", expected="only recorded files",
            message=f"{name} was added after the checkpoint was written",
        )  # fmt: skip


def modules_recorded(look: Look, checkpoint: Checkpoint) -> None:
    """The recorded list of quantized modules is the one in the tensors."""
    recorded = set(_manifest(checkpoint).quantized_modules)
    look.count(len(recorded))
    for name in sorted(recorded - checkpoint.modules.keys()):
        look.wrong(
            name, found="not quantized", expected="quantized, as recorded", message=f"{name} is recorded as quantized"
        )
    for name in sorted(checkpoint.modules.keys() - recorded):
        look.wrong(
            name, found="quantized", expected="not quantized, as recorded",
            message=f"{name} is quantized, which the manifest does not record",
        )  # fmt: skip


def fates_true(look: Look, checkpoint: Checkpoint) -> None:
    """Kept tensors are there, quantized ones are not, and a dropped one has a reason."""
    quantized = set(_manifest(checkpoint).quantized_modules)
    for name, fate in _manifest(checkpoint).tensors.items():
        look.count()
        there = name in checkpoint.plain
        if fate.fate is Fate.KEPT and not there:
            look.wrong(name, found="absent", expected="kept, as recorded", message=f"{name} is recorded as kept")
        if fate.fate is Fate.QUANTIZED and there and name.removesuffix(".weight") not in quantized:
            look.wrong(
                name, found="unquantized", expected="quantized, as recorded", message=f"{name} is recorded as quantized"
            )
        if fate.fate is Fate.DROPPED and not fate.reason:
            look.wrong(
                name, found="no reason", expected="a reason", message=f"{name} is recorded as dropped without one"
            )
    if checkpoint.source is not None:
        for name in sorted(checkpoint.source.index.tensors.keys() - _manifest(checkpoint).tensors.keys()):
            look.wrong(
                name, found="no fate", expected="kept, quantized or dropped", message=f"{name} is unaccounted for"
            )


def recipe_agrees(look: Look, checkpoint: Checkpoint) -> None:
    """Scheme and KV cache of the recorded recipe are what the config states."""
    recipe = _manifest(checkpoint).recipe
    look.count()
    stated, kv = checkpoint.stated_schemes, KVCache.FP8 if states_fp8_kv(checkpoint) else KVCache.NONE
    other = next((name for name, scheme in stated.items() if recipe.scheme_of(name) is not scheme), None)
    if stated and (other is not None or recipe.kv_cache is not kv):
        recorded = recipe.scheme_text if other is None else f"{recipe.scheme_of(other)} of {other}"
        expected = scheme_text(stated.values()) if other is None else f"{stated[other]}"
        look.wrong(
            MANIFEST_FILE, found=f"{recorded}, KV cache {recipe.kv_cache}", expected=f"{expected}, KV cache {kv}",
            message="the recorded recipe is not the one config.json states",
        )  # fmt: skip


def fallbacks_named(look: Look, checkpoint: Checkpoint) -> None:
    """Fallbacks and transformed weights are of modules that exist."""
    manifest = _manifest(checkpoint)
    for name in (*manifest.rare_modules, *manifest.transformed):
        look.count()
        if name not in checkpoint.module_names:
            look.wrong(
                name, found="no such module", expected="a module", message=f"{name} is recorded but does not exist"
            )


def source_recorded(look: Look, checkpoint: Checkpoint) -> None:
    """Side files, and the given source's config and side files, have the sha256 recorded of the source."""
    folders = [(checkpoint.folder, False)]
    if checkpoint.source is not None:
        folders.append((checkpoint.source.folder, True))
    for name, digest in _manifest(checkpoint).source_files.items():
        for folder, is_source in folders:
            # Absent side files have rules of their own, and the source's weights are compared by value.
            if name not in folder.files or not (is_side_file(name) or (is_source and name == CONFIG_FILE)):
                continue
            look.count()
            found = folder.sha256(name)
            if found != digest:
                look.wrong(
                    name, found=f"sha256 {found[:16]} in {folder.path.name}", expected=f"sha256 {digest[:16]}",
                    message=f"{name} is not the file the checkpoint was made from",
                )  # fmt: skip
