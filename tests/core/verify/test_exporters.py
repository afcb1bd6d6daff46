"""What the two exporters write, from any artifact, is a good checkpoint; what convert makes of one is too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fourfold.artifact import Artifact
from fourfold.config import KVCache, Options, Scheme
from fourfold.convert import convert_checkpoint
from fourfold.manifest import sha256_files
from fourfold.plugins import Registry, Role, build_plugin_manager
from fourfold.progress import NoProgress
from fourfold.verify import verify_checkpoint

from .faults import BOTH
from .good_checkpoints import TEXT, Variant

ARTIFACTS = (
    Variant(BOTH[0]),
    Variant(BOTH[0], scheme=Scheme.W4A16),
    Variant(BOTH[0], kv_cache=KVCache.FP8),
    Variant(BOTH[0], targets="experts-only"),
    Variant(BOTH[0], targets="attention-bf16", scheme=Scheme.W4A16, kv_cache=KVCache.FP8, sharded=True),
    Variant(BOTH[0], exclude=(f"{TEXT}.0.experts.*",)),
    Variant(BOTH[0], exclude=("*.self_attn.[qkv]_proj",)),
)
REGISTRY = Registry(build_plugin_manager())


@pytest.mark.parametrize("layout", BOTH)
@pytest.mark.parametrize("variant", ARTIFACTS, ids=lambda v: v.name.removeprefix("modelopt-"))
def test_exported_checkpoint_raises_nothing(
    variant: Variant, layout: str, good: Callable[[Variant], Path], source: Path, tmp_path: Path
) -> None:
    artifact = Artifact(good(variant).parent / "artifact")
    REGISTRY.load(Role.EXPORTER, layout)(Options()).export(artifact, tmp_path, NoProgress())
    record = {"kind": "checkpoint", "layout": layout, "files": sha256_files(tmp_path)}
    artifact.manifest.model_copy(update=record).write(tmp_path)
    assert verify_checkpoint(tmp_path, source=source).findings == ()


@pytest.mark.parametrize("layout", BOTH)
def test_converted_checkpoint_with_unquantized_keys_raises_nothing(
    layout: str, good: Callable[[Variant], Path], source: Path, tmp_path: Path
) -> None:
    """Where a layer reads its values from its keys, no tensor names them; both ignore lists must all the same."""
    other = next(name for name in BOTH if name != layout)
    checkpoint = good(Variant(other, exclude=("*.self_attn.[qkv]_proj",)))
    convert_checkpoint(checkpoint, layout, tmp_path / "converted", REGISTRY, NoProgress())
    report = verify_checkpoint(tmp_path / "converted", source=source)
    assert report.findings == ()
    assert report.checked["FF106"] > 0
