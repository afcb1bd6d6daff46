"""Checks of an exporter, on artifacts that the suite writes with the reference codec."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fourfold.artifact import BLOCK_SCALE, PACKED_WEIGHT, Artifact, ArtifactWriter
from fourfold.checkpoint.canonical import CanonicalFolder
from fourfold.checkpoint.index import CONFIG_FILE, TensorFolder, read_json
from fourfold.compare import Level, compare
from fourfold.config import Config, KVCache, Recipe, Scheme
from fourfold.conformance.subject import Subject, require
from fourfold.interfaces.quantizer import QuantizeJob
from fourfold.manifest import sha256_files
from fourfold.models.gemma4 import read_gemma4
from fourfold.nvfp4 import global_scale_from_amax, quantize
from fourfold.pipeline import write_checkpoint_manifest
from fourfold.progress import NoProgress
from fourfold.targets import resolve_targets
from fourfold.verify import verify_checkpoint
from fourfold.versions import package_versions

#: The artifacts every exporter must read.
RECIPES = {
    "w4a4": Recipe(),
    "w4a16-experts-only": Recipe(scheme=Scheme.W4A16, targets="experts-only"),
    "w4a4-fp8-kv": Recipe(kv_cache=KVCache.FP8),
    "w4a4-attention-w4a16": Recipe(weights_only=("*.self_attn.*",)),
}
_SCALE = 0.01


class _Exported(Config):
    """One export: the folders of artifact and checkpoint, and the artifact's files before."""

    artifact: Path
    checkpoint: Path
    files_before: dict[str, str]


def kept_tensors_are_untouched(subject: Subject) -> None:
    """Every tensor that was not quantized stands under its own name with its own bytes."""
    for exported in _exports(subject):
        artifact, checkpoint = Artifact(exported.artifact), TensorFolder(exported.checkpoint)
        for name in artifact.kept():
            if name.rpartition(".")[2] in ("k_scale", "v_scale"):
                continue  # a layout has its own name for these
            require(name in checkpoint, f"{name}: missing from the checkpoint")
            _require_same(artifact.tensors, name, checkpoint, name)


def codes_and_block_scales_are_untouched(subject: Subject) -> None:
    """Packed weights and block scales move byte for byte, whatever they are called."""
    for exported in _exports(subject):
        artifact, checkpoint = Artifact(exported.artifact), CanonicalFolder(exported.checkpoint)
        for module in artifact.manifest.quantized_modules:
            for kind in (PACKED_WEIGHT, BLOCK_SCALE):
                name = f"{module}.{kind}"
                require(name in checkpoint, f"{name}: missing from the checkpoint")
                _require_same(artifact.tensors, name, checkpoint, name)


def stored_values_are_equal(subject: Subject) -> None:
    """``fourfold compare`` finds artifact and checkpoint equal at level ``bytes``, global scales included."""
    for exported in _exports(subject):
        report = compare(exported.artifact, exported.checkpoint, level=Level.BYTES, progress=NoProgress())
        shown = "; ".join(f"{d.tensor}: {d.detail}" for d in report.differences[:3])
        require(report.equal, f"{subject.name}: {report.tensors.differing} tensors differ from the artifact: {shown}")


def verifier_finds_nothing(subject: Subject) -> None:
    """``fourfold verify`` with the source finds nothing, for every artifact."""
    for exported in _exports(subject):
        report = verify_checkpoint(exported.checkpoint, source=subject.model_path)
        shown = "; ".join(f"{f.rule} {f.tensor}: {f.message}" for f in report.findings[:3])
        require(report.ok, f"{subject.name}: {sum(report.num_findings.values())} findings: {shown}")


def side_files_are_the_sources(subject: Subject) -> None:
    """Tokenizer, chat template, processor and generation config arrive unchanged; config.json loses no key."""
    source = TensorFolder(subject.model_path)
    for exported in _exports(subject):
        for name in source.side_files():
            path = exported.checkpoint / name
            require(path.is_file(), f"{name}: left behind")
            require(path.read_bytes() == (source.path / name).read_bytes(), f"{name}: not the source's bytes")
        config: dict[str, Any] = read_json(exported.checkpoint / CONFIG_FILE)
        lost = sorted(key for key, value in source.config.items() if config.get(key) != value)
        require(not lost, f"{CONFIG_FILE}: changed or lost {', '.join(lost)}")
        require("quantization_config" in config, f"{CONFIG_FILE}: has no quantization_config; a server would read BF16")


def only_the_destination_is_written(subject: Subject) -> None:
    """The artifact stays as it was, and the destination holds plain files only."""
    for exported in _exports(subject):
        require(
            sha256_files(exported.artifact, skip=()) == exported.files_before, f"{subject.name}: changed the artifact"
        )
        for path in exported.checkpoint.iterdir():
            require(path.is_file() and not path.is_symlink(), f"{path.name}: not a plain file in the destination")


def same_artifact_same_bytes(subject: Subject) -> None:
    """Two exports of one artifact give the same files."""
    first = _export(subject, "w4a4", subject.work / "export-w4a4-again")
    second = _exported(subject, "w4a4")
    a, b = sha256_files(first.checkpoint), sha256_files(second.checkpoint)
    differing = sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))
    require(not differing, f"{subject.name}: two exports differ in {', '.join(differing)}")


def make_artifact(model_path: Path, folder: Path, recipe: Recipe) -> Path:
    """An artifact of the suite's model by the reference codec; input and KV scales are plain constants."""
    import torch

    source = TensorFolder(model_path)
    gemma = read_gemma4(source)
    targets = resolve_targets(gemma, recipe)
    job = QuantizeJob(
        model_path=model_path, source=source, gemma=gemma, targets=targets, recipe=recipe, tokens=None, batch_size=1,
        unfuser_name="reference", unfuser=None, device="cpu", seed=0,  # type: ignore[arg-type]
    )  # fmt: skip
    folder.mkdir(parents=True)
    writer = ArtifactWriter(folder, job)
    groups: dict[str, torch.Tensor] = {}
    for module in targets:
        amax = module.read(source).float().abs().amax()
        groups[module.scale_group] = torch.maximum(amax, groups.get(module.scale_group, amax))
    for module in targets:
        scale = global_scale_from_amax(groups[module.scale_group])
        input_scale = _SCALE if recipe.scheme_of(module.name) is Scheme.W4A4 else None
        writer.add_weight(module, quantize(module.read(source), global_scale=scale), input_global_scale=input_scale)
    if recipe.kv_cache is KVCache.FP8:
        for name in dict.fromkeys(m.name.rpartition(".")[0] for m in targets if m.projection == "k_proj"):
            writer.add_kv_scales(name, _SCALE, 2 * _SCALE)
    writer.finish(
        {
            "source_files": sha256_files(model_path),
            "unfuser": {"name": "reference"},
            "quantizer": {"name": "reference"},
            "packages": package_versions(),
        }
    )
    return folder


def _exports(subject: Subject) -> Iterator[_Exported]:
    for name in RECIPES:
        yield _exported(subject, name)


def _exported(subject: Subject, name: str) -> _Exported:
    return subject.once(f"export-{name}", lambda folder: _export(subject, name, folder))  # type: ignore[no-any-return]


def _export(subject: Subject, name: str, folder: Path) -> _Exported:
    path = subject.once(f"artifact-{name}", lambda made: make_artifact(subject.model_path, made, RECIPES[name]))
    before = sha256_files(path, skip=())
    folder.mkdir(parents=True)
    artifact = Artifact(path)
    subject.implementation().export(artifact, folder, NoProgress())
    write_checkpoint_manifest(artifact, subject.name, folder)
    return _Exported(artifact=path, checkpoint=folder, files_before=before)


def _require_same(a: TensorFolder, name_a: str, b: TensorFolder, name_b: str) -> None:
    import torch

    left, right = a.read(name_a), b.read(name_b)
    same = left.dtype == right.dtype and left.shape == right.shape
    if same:
        same = torch.equal(left.reshape(-1).view(torch.uint8), right.reshape(-1).view(torch.uint8))
    require(same, f"{name_a}: not the artifact's bytes")
