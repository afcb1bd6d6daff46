"""How faults are planted in files: shards, index, configs, side files, manifest."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fourfold.checkpoint.layouts import COMPRESSED_TENSORS, MODELOPT
from fourfold.config import KVCache, Scheme
from fourfold.manifest import sha256_files

from .good_checkpoints import TEXT, Editable

SHARD, INDEX, CONFIG, HF = "model.safetensors", "model.safetensors.index.json", "config.json", "hf_quant_config.json"
MODELOPT_ONLY, CT_ONLY = (MODELOPT.name,), (COMPRESSED_TENSORS.name,)
SHARDED = {"sharded": True}
FP8 = {"kv_cache": KVCache.FP8}
W4A16 = {"scheme": Scheme.W4A16}
ATTENTION_BF16 = {"targets": "attention-bf16"}
After = Callable[[Path], object]
Header = dict[str, Any]


def header_of(path: Path) -> tuple[Header, bytes]:
    """A shard's header and its data."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def rewrite(path: Path, header: Header | bytes, data: bytes) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def edit_header(how: Callable[[Header], object]) -> After:
    def after(folder: Path) -> None:
        header, data = header_of(folder / SHARD)
        how(header)
        rewrite(folder / SHARD, header, data)

    return after


def raw_header(how: Callable[[bytes], bytes]) -> After:
    def after(folder: Path) -> None:
        header, data = header_of(folder / SHARD)
        rewrite(folder / SHARD, how(json.dumps(header).encode()), data)

    return after


def edit_json(name: str, how: Callable[[Any], object]) -> After:
    def after(folder: Path) -> None:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
        how(content)
        (folder / name).write_text(json.dumps(content), encoding="utf-8")

    return after


def write(name: str, content: str | bytes) -> After:
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(data)


def remove(*names: str) -> After:
    return lambda folder: [(folder / name).unlink() for name in names]


def truncate(folder: Path) -> None:
    os.truncate(folder / SHARD, (folder / SHARD).stat().st_size - 1000)


def drop_weights(folder: Path) -> None:
    for path in folder.glob("*.safetensors"):
        path.unlink()


def first_entry(header: Header) -> Header:
    return next(value for key, value in header.items() if key != "__metadata__")


def exchange_first_two_shards(index: Header) -> None:
    names = list(index["weight_map"])
    first = index["weight_map"][names[0]]
    other = next(file for file in index["weight_map"].values() if file != first)
    index["weight_map"][names[0]] = other


def copy_into_last_shard(folder: Path) -> None:
    """The first tensor of the first shard stands in the last one too."""
    first, last = sorted(folder.glob("*.safetensors"))[0], sorted(folder.glob("*.safetensors"))[-1]
    header, data = header_of(first)
    name = next(key for key in header if key != "__metadata__")
    begin, end = header[name]["data_offsets"]
    target, content = header_of(last)
    target[name] = header[name] | {"data_offsets": [len(content), len(content) + end - begin]}
    rewrite(last, target, content + data[begin:end])


def twice_in_header(text: bytes) -> bytes:
    name = f"{TEXT}.0.layer_scalar"
    entry = json.dumps(json.loads(text)[name])
    return text[:-1] + f', "{name}": {entry}}}'.encode()


def link_outside(folder: Path) -> None:
    target = folder.parent / "elsewhere.json"
    (folder / "generation_config.json").rename(target)
    (folder / "generation_config.json").symlink_to(target)


def link_outside_to(name: str) -> After:
    """Put a file outside the folder, and a link to it in its place."""

    def after(folder: Path) -> None:
        target = folder.parent / f"elsewhere-{name}"
        (folder / name).rename(target)
        (folder / name).symlink_to(target)

    return after


def pipe(name: str) -> After:
    """A named pipe in the place of a file: whoever opens it waits for a writer."""
    return lambda folder: ((folder / name).unlink(), os.mkfifo(folder / name))


def config(how: Callable[[Header], object]) -> Callable[[Editable, Path], object]:
    return lambda e, _: how(e.config)


def section(how: Callable[[Header], object]) -> Callable[[Editable, Path], object]:
    return lambda e, _: how(e.section)


def both(key: str, hf_key: str, value: object) -> Callable[[Editable, Path], object]:
    """Change a fact in config.json and in hf_quant_config.json."""

    def plant(e: Editable, _: Path) -> None:
        e.section[key] = value
        if e.is_modelopt:
            e.hf["quantization"][hf_key] = value

    return plant


def group(how: Callable[[Header], object]) -> Callable[[Editable, Path], object]:
    return lambda e, _: how(e.section["config_groups"]["group_0"])


def ignore(entry: str, remove: str | None = None) -> Callable[[Editable, Path], object]:
    return lambda e, _: e.ignore(entry, remove=remove)


def group_size(e: Editable, _: Path) -> None:
    e.section["config_groups"]["group_0"]["weights"]["group_size"] = 32
    if e.is_modelopt:
        e.hf["quantization"]["group_size"] = 32


def manifest(how: Callable[[Any], object]) -> After:
    return edit_json("manifest.json", how)


def rehashed(after: After) -> After:
    """Change files, then record their new hashes, so that only the other manifest rules can tell."""

    def change(folder: Path) -> None:
        after(folder)
        edit_json("manifest.json", lambda m: m.__setitem__("files", sha256_files(folder)))(folder)

    return change


def state_scheme(algorithm: str, inputs: bool) -> Callable[[Editable, Path], object]:
    """State another scheme, in every place a layout states it."""

    def plant(e: Editable, _: Path) -> None:
        stated = e.section["config_groups"]["group_0"]
        dynamic = {} if e.is_modelopt else {"dynamic": "local"}
        stated["input_activations"] = stated["weights"] | dynamic if inputs else None
        if e.is_modelopt:
            e.section["quant_algo"] = e.hf["quantization"]["quant_algo"] = algorithm

    return plant


def state_kv(scheme: dict[str, Any] | None) -> Callable[[Editable, Path], object]:
    """State an FP8 KV cache, or none."""

    def plant(e: Editable, _: Path) -> None:
        e.section["kv_cache_scheme"] = scheme
        if e.is_modelopt:
            e.hf["quantization"]["kv_cache_quant_algo"] = "FP8" if scheme else None

    return plant


def other_method(e: Editable, _: Path) -> None:
    e.section["quant_method"] = "compressed-tensors" if e.is_modelopt else "modelopt"


def ignore_by_many_patterns(e: Editable, _: Path) -> None:
    """Each matches what is ignored anyway."""
    for number in range(5_000):
        e.ignore(f"model.[v{number}]ision_tower*" if e.is_modelopt else rf"re:model\.vision_tower\..*|{number}")


def ignore_quantized_layer(e: Editable, _: Path) -> None:
    e.ignore(f"{TEXT}.1.experts*" if e.is_modelopt else r"re:.*layers\.1\.experts.*")


def claim(file: str) -> After:
    """Let the index say that its first tensor is in ``file``."""
    return edit_json(INDEX, lambda i: i["weight_map"].__setitem__(next(iter(i["weight_map"])), file))


def list_ghost(index: Header) -> None:
    index["weight_map"]["ghost"] = next(iter(index["weight_map"].values()))


def stray_shard(folder: Path) -> None:
    first = sorted(folder.glob("*.safetensors"))[0]
    (folder / "model-00009-of-00009.safetensors").write_bytes(first.read_bytes())


def drop_last_shard(folder: Path) -> None:
    sorted(folder.glob("*.safetensors"))[-1].unlink()


def overlap(header: Header) -> None:
    header[f"{TEXT}.0.layer_scalar"]["data_offsets"] = header[f"{TEXT}.1.layer_scalar"]["data_offsets"]


def first_shape(shape: list[int]) -> After:
    return edit_header(lambda header: first_entry(header).__setitem__("shape", shape))


def rope_base(c: Header) -> None:
    c["text_config"]["rope_parameters"]["full_attention"]["rope_theta"] = 10000.0


def second_group(s: Header) -> None:
    s["config_groups"]["group_1"] = s["config_groups"]["group_0"]


def hf_fact(key: str, value: object) -> After:
    return edit_json(HF, lambda content: content["quantization"].__setitem__(key, value))


def drop_kv_scale(e: Editable, _: Path) -> None:
    del e.tensors[f"{TEXT}.2.self_attn.{e.layout.kv_scales['v_scale']}"]


def record_fate(name: str, fate: str) -> After:
    return manifest(lambda m: m["tensors"].__setitem__(name, {"fate": fate, "reason": None}))


def record_module(name: str) -> After:
    return manifest(lambda m: m["quantized_modules"].append(name))


def record_fallback(module: str) -> After:
    return manifest(lambda m: m["fallbacks"].append({"module": module, "rule": "layer-max", "detail": ""}))


def no_input_scales(e: Editable, _: Path) -> None:
    for name in [name for name in e.tensors if name.endswith(f".{e.layout.input_global_scale}")]:
        del e.tensors[name]
