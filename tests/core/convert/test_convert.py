"""Both directions, tensor for tensor, against numpy on the raw bytes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fourfold.config import Recipe
from fourfold.manifest import Component, Manifest, sha256_file, sha256_files
from fourfold.plugins import Registry

from .conftest import BASE, DOWN, LAYOUTS, SIDE_FILES, MakeCheckpoint
from .conversion import BACK, convert

#: modelopt's key -> compressed-tensors', and whether it is turned into a reciprocal.
KEYS = {
    "weight": ("weight_packed", False),
    "weight_scale": ("weight_scale", False),
    "weight_scale_2": ("weight_global_scale", True),
    "input_scale": ("input_global_scale", True),
}
NUM_MODULES = 4 + 3 + 12
#: No float32 has this one as its reciprocal.
INEXACT = 1.9921875


def raw(folder: Path) -> dict[str, tuple[str, list[int], bytes]]:
    content = (folder / "model.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header.pop("__metadata__", None)
    data = content[8 + length :]
    return {n: (e["dtype"], e["shape"], data[slice(*e["data_offsets"])]) for n, e in header.items()}


def number(entry: tuple[str, list[int], bytes]) -> np.float32:
    (value,) = np.frombuffer(entry[2], np.float32)
    return value


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("scheme", ["W4A4", "W4A16"])
def test_every_tensor(checkpoint: MakeCheckpoint, registry: Registry, tmp_path: Path, layout: str, scheme: str) -> None:
    path = checkpoint(layout, scheme=scheme)
    report = convert(path, BACK[layout], tmp_path / "out", registry)
    before, after = raw(path), raw(tmp_path / "out")
    modelopt, other = (before, after) if layout == "modelopt" else (after, before)
    seen = set()
    modules = [n.removesuffix(".weight_scale_2") for n in modelopt if n.endswith(".weight_scale_2")]
    assert len(modules) == NUM_MODULES == report.num_modules
    for module in modules:
        for key, (their_key, turned) in KEYS.items():
            if key == "input_scale" and scheme == "W4A16":
                continue
            ours, theirs = modelopt[f"{module}.{key}"], other[f"{module}.{their_key}"]
            seen.add(f"{module}.{their_key}")
            if turned:
                assert (ours[1], theirs[1]) == ([], [1])
                stored, written = (ours, theirs) if layout == "modelopt" else (theirs, ours)
                assert number(written) == np.float32(1) / number(stored)
            else:
                assert ours == theirs
    kept = {n: e for n, e in other.items() if n not in seen}
    assert kept == {n: modelopt[n] for n in kept}
    assert len(modelopt) == len(other)
    assert report.num_kept_tensors == len(kept)
    assert report.num_scales == len(modules) * (2 if scheme == "W4A4" else 1)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_there_and_back(checkpoint: MakeCheckpoint, registry: Registry, tmp_path: Path, layout: str) -> None:
    scale = f"{DOWN}.weight_scale_2" if layout == "modelopt" else f"{DOWN}.weight_global_scale"

    def plant(tensors: dict[str, torch.Tensor]) -> None:
        tensors[scale].fill_(INEXACT * (2.0**-14 if layout == "modelopt" else 2.0**14))

    path = checkpoint(layout, edit=plant, kv_cache="fp8")
    report = convert(path, BACK[layout], tmp_path / "there", registry)
    second = convert(tmp_path / "there", layout, tmp_path / "back", registry)
    before, after = raw(path), raw(tmp_path / "back")
    changed = {n for n in before if before[n] != after.get(n)}
    assert before.keys() == after.keys()
    assert scale in changed
    assert changed == {case.tensor for case in report.inexact}
    for case in report.inexact:
        stored = number(before[case.tensor])
        assert case.stored == stored
        assert case.written == np.float32(1) / stored
        assert case.restored == number(after[case.tensor]) == np.float32(1) / np.float32(case.written)
        assert abs(np.float32(case.restored).view(np.int32) - stored.view(np.int32)) == 1
        # No neighbour of the written value would have restored it: the loss cannot be avoided.
        written = np.float32(case.written)
        for near in (np.nextafter(written, np.float32(0)), np.nextafter(written, np.float32(np.inf))):
            assert np.float32(1) / near != stored
    # What has come back once comes back every time.
    assert second.inexact == ()
    third = convert(tmp_path / "back", BACK[layout], tmp_path / "there-again", registry)
    assert third.inexact == ()
    assert (tmp_path / "there/model.safetensors").read_bytes() == (
        tmp_path / "there-again/model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_equals_what_the_exporter_writes_from_the_artifact(
    checkpoint: MakeCheckpoint, registry: Registry, tmp_path: Path, layout: str
) -> None:
    """Config, ignore list, KV scales and side files too: a converted checkpoint is an exported one."""
    recipe = {"targets": "experts-only", "kv_cache": "fp8"}
    exported = checkpoint(BACK[layout], **recipe)
    convert(checkpoint(layout, **recipe), BACK[layout], tmp_path / "out", registry)
    names = {p.name for p in exported.iterdir()}
    assert {p.name for p in (tmp_path / "out").iterdir()} == names
    assert set(SIDE_FILES) < names
    for name in names - {"model.safetensors"}:
        assert (tmp_path / "out" / name).read_bytes() == (exported / name).read_bytes(), name
    converted, direct = raw(tmp_path / "out"), raw(exported)
    assert converted.keys() == direct.keys()
    assert [n for n in direct if n.endswith("k_scale")]
    config = json.loads((tmp_path / "out/config.json").read_text())["quantization_config"]
    assert config["quant_method"] == BACK[layout]
    assert config["kv_cache_scheme"]["num_bits"] == 8
    ignored = " ".join(config["ignore"])
    assert all(part in ignored for part in ("self_attn", "router", "vision_tower"))
    assert "experts" not in ignored


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("alone", ["*.self_attn.*", "*.experts.*"])
def test_each_module_keeps_its_scheme(
    checkpoint: MakeCheckpoint, registry: Registry, tmp_path: Path, layout: str, alone: str
) -> None:
    """Without a manifest, what the config states of a module without an input scale is believed."""
    exported = checkpoint(BACK[layout], weights_only=(alone,))
    convert(checkpoint(layout, weights_only=(alone,)), BACK[layout], tmp_path / "out", registry)
    for path in exported.iterdir():
        if path.name != "model.safetensors":
            assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes(), path.name
    assert raw(tmp_path / "out").keys() == raw(exported).keys()


def test_own_manifest_travels(checkpoint: MakeCheckpoint, registry: Registry, tmp_path: Path, artifacts) -> None:
    path = checkpoint("modelopt")
    manifest = artifacts(Recipe()).manifest
    files = sha256_files(path)
    manifest.model_copy(update={"kind": "checkpoint", "layout": "modelopt", "seed": 42, "files": files}).write(path)
    convert(path, "compressed-tensors", tmp_path / "out", registry)
    written = Manifest.read(tmp_path / "out")
    assert (written.layout, written.seed, written.quantized_modules) == (
        "compressed-tensors", 42, manifest.quantized_modules,
    )  # fmt: skip
    assert written.exporter == Component(name="compressed-tensors")
    assert written.notes[-1] == "converted from layout modelopt"
    assert written.files["config.json"] == sha256_file(tmp_path / "out/config.json")
    assert not (checkpoint("modelopt") / "manifest.json").exists()


def test_a_foreign_producer_is_kept(checkpoint: MakeCheckpoint, registry: Registry, tmp_path: Path) -> None:
    path = checkpoint("modelopt")
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"]["producer"] = {"name": "modelopt", "version": "0.43.0"}
    (path / "config.json").write_text(json.dumps(config))
    (path / "README.md").write_text("card")
    report = convert(path, "compressed-tensors", tmp_path / "ct", registry)
    assert report.files_left_behind == ("README.md", "hf_quant_config.json")
    assert not (tmp_path / "ct" / "manifest.json").exists()


def test_kv_scales_as_llm_compressor_stores_them_travel(
    checkpoint: MakeCheckpoint, registry: Registry, tmp_path: Path
) -> None:
    """BF16 [1]."""
    name = f"{BASE}.self_attn.k_scale"
    scale = torch.tensor([0.02], dtype=torch.bfloat16)
    path = checkpoint("compressed-tensors", kv_cache="fp8", edit=lambda t: t.update({name: scale}))
    convert(path, "modelopt", tmp_path / "out", registry)
    written = load_file(tmp_path / "out/model.safetensors")[f"{BASE}.self_attn.k_proj.k_scale"]
    assert torch.equal(written.reshape(1), scale)


def test_a_block_of_zeros_under_scale_zero_travels(
    checkpoint: MakeCheckpoint, registry: Registry, tmp_path: Path
) -> None:
    """As FF053 has it: nothing is lost there."""

    def plant(tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"{DOWN}.weight"][3, :8] = torch.tensor([0x00, 0x80, 0x08, 0x88] * 2, dtype=torch.uint8)
        tensors[f"{DOWN}.weight_scale"][3, 0] = 0

    path = checkpoint("modelopt", edit=plant)
    convert(path, "compressed-tensors", tmp_path / "out", registry)
    before, after = raw(path), raw(tmp_path / "out")
    assert before[f"{DOWN}.weight_scale"] == after[f"{DOWN}.weight_scale"]
    assert before[f"{DOWN}.weight"] == after[f"{DOWN}.weight_packed"]


def test_biases_travel(checkpoint: MakeCheckpoint, registry: Registry, tmp_path: Path) -> None:
    path = checkpoint("modelopt", edit=lambda t: t.update({f"{BASE}.self_attn.q_proj.bias": torch.ones(32)}))
    convert(path, "compressed-tensors", tmp_path / "out", registry)
    assert torch.equal(load_file(tmp_path / "out/model.safetensors")[f"{BASE}.self_attn.q_proj.bias"], torch.ones(32))


_MEMORY_SCRIPT = """
import sys, threading
from pathlib import Path
import torch
torch.set_num_threads(1)
from fourfold.checkpoint.layouts import COMPRESSED_TENSORS
from fourfold.export import write_checkpoint
from fourfold.convert import convert_checkpoint
from fourfold.hookspecs import hookimpl
from fourfold.plugins import Entry, Registry, build_plugin_manager
from fourfold.progress import NoProgress

class SmallShards:
    def __init__(self, options): pass
    def export(self, artifact, destination, progress):
        write_checkpoint(artifact, destination, COMPRESSED_TENSORS, {}, progress, max_shard_bytes=16 * 2**20)

class Plugin:
    @hookimpl
    def fourfold_register_exporters(self):
        return [Entry(name="compressed-tensors", summary="", implementation="__main__:SmallShards")]

def anonymous_kib():
    return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0])

registry = Registry(build_plugin_manager([Plugin()]))
done, before = threading.Event(), anonymous_kib()
peak = before
def watch():
    global peak
    while not done.wait(0.002):
        peak = max(peak, anonymous_kib())
watcher = threading.Thread(target=watch, daemon=True)
watcher.start()
convert_checkpoint(Path(sys.argv[1]), "compressed-tensors", Path(sys.argv[2]), registry, NoProgress())
done.set()
watcher.join()
print(peak - before)
"""


@pytest.mark.timeout(120)
def test_memory_is_bounded_by_a_shard(tmp_path: Path) -> None:
    """260 MB in shards of 16: what is resident beyond the maps is a few shards."""
    path = tmp_path / "big"
    path.mkdir()
    tensors = {}
    generator = torch.Generator().manual_seed(0)
    for expert in range(460):
        name = f"model.language_model.layers.0.experts.{expert}.down_proj"
        tensors[f"{name}.weight"] = torch.randint(0, 256, (1024, 512), dtype=torch.uint8, generator=generator)
        tensors[f"{name}.weight_scale"] = torch.full((1024, 64), 2.0).to(torch.float8_e4m3fn)
        tensors[f"{name}.weight_scale_2"] = torch.tensor(0.001)
    save_file(tensors, path / "model.safetensors")
    assert (path / "model.safetensors").stat().st_size > 250 * 2**20
    stated = {"quantization_config": {"quant_method": "modelopt", "quant_algo": "W4A16_NVFP4"}}
    (path / "config.json").write_text(json.dumps(stated))
    done = subprocess.run(
        [sys.executable, "-c", _MEMORY_SCRIPT, path, tmp_path / "out"],
        capture_output=True, text=True, check=True, env={"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 15
    assert int(done.stdout) < 80 * 2**10
