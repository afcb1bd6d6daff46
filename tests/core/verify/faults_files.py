"""Faults in files: shards, index, configs, side files, manifest."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from faults import Fault
from good_checkpoints import TEXT, Editable

from fourfold.checkpoint.layouts import COMPRESSED_TENSORS, MODELOPT
from fourfold.config import KVCache, Scheme
from fourfold.manifest import sha256_files

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
    return next(value for key, value in header.items() if key != "__metadata__")  # type: ignore[no-any-return]


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


FILE_FAULTS = (
    # files
    Fault("no weights", "FF001", after=drop_weights, also=("FF020", "FF022", "FF028", "FF029", "FF035")),
    Fault("truncated shard", "FF002", after=truncate, also=("FF024", "FF027", "FF020", "FF022", "FF028")),
    Fault("shard of a few bytes", "FF002", after=write(SHARD, b"\x10\0\0"), also=("FF020", "FF022", "FF028", "FF029")),
    Fault("header bomb", "FF002", after=write(SHARD, (2**62).to_bytes(8, "little") + b"{}"),
          also=("FF020", "FF022", "FF028", "FF029")),
    Fault("deep JSON in a header", "FF002", after=lambda f: rewrite(f / SHARD, b"[" * 100_000, b""),
          also=("FF020", "FF022", "FF028", "FF029")),
    Fault("a name that is not UTF-8", "FF002", after=raw_header(lambda t: t.replace(b"layer_scalar", b"layer_\xff\xfe\xfdar")),
          also=("FF020", "FF022", "FF028", "FF029")),
    Fault("a huge declared shape", "FF002", after=edit_header(lambda h: first_entry(h).__setitem__("shape", [2**47, 2**47])),
          also=("FF024", "FF025", "FF028", "FF029")),
    Fault("a negative shape", "FF002", after=edit_header(lambda h: first_entry(h).__setitem__("shape", [-1])),
          also=("FF024", "FF025", "FF028", "FF029")),
    Fault("an unknown dtype", "FF002", after=edit_header(lambda h: first_entry(h).__setitem__("dtype", "F4")),
          also=("FF024", "FF025", "FF028", "FF029")),
    Fault("overlapping tensors", "FF002",
          after=edit_header(lambda h: h[f"{TEXT}.0.layer_scalar"].__setitem__("data_offsets", h[f"{TEXT}.1.layer_scalar"]["data_offsets"])),
          ),
    Fault("bytes after the last tensor", "FF002", after=lambda f: (f / SHARD).open("ab").write(b"\0" * 64)),
    Fault("path traversal in the index", "FF003", variant=SHARDED,
          after=edit_json(INDEX, lambda i: i["weight_map"].__setitem__(next(iter(i["weight_map"])), "../../etc/passwd")),
          also=("FF005",)),
    Fault("absolute path in the index", "FF003", variant=SHARDED,
          after=edit_json(INDEX, lambda i: i["weight_map"].__setitem__(next(iter(i["weight_map"])), "/etc/passwd")),
          also=("FF005",)),
    Fault("a link out of the folder", "FF004", after=link_outside),
    Fault("the index names the wrong shard", "FF005", variant=SHARDED, after=edit_json(INDEX, exchange_first_two_shards)),
    Fault("a shard is missing", "FF005", variant=SHARDED,
          after=lambda f: sorted(f.glob("*.safetensors"))[-1].unlink(),
          also=("FF007", "FF028", "FF024", "FF025", "FF106", "FF020", "FF022", "FF029")),
    Fault("an index without weight_map", "FF005", variant=SHARDED, after=write(INDEX, '{"metadata": {}}')),
    Fault("the index lists a tensor that is not there", "FF005", variant=SHARDED,
          after=edit_json(INDEX, lambda i: i["weight_map"].__setitem__("ghost", next(iter(i["weight_map"].values()))))),
    Fault("a partial index", "FF006", variant=SHARDED, after=edit_json(INDEX, lambda i: i["weight_map"].pop(f"{TEXT}.0.layer_scalar"))),
    Fault("shards without an index", "FF006", variant=SHARDED, after=remove(INDEX)),
    Fault("a shard of another write", "FF006", variant=SHARDED,
          after=lambda f: (f / "model-00009-of-00009.safetensors").write_bytes(sorted(f.glob("*.safetensors"))[0].read_bytes())),
    Fault("stale total_size", "FF007", variant=SHARDED, after=edit_json(INDEX, lambda i: i["metadata"].__setitem__("total_size", 1))),
    Fault("a tensor in two shards", "FF008", variant=SHARDED, after=copy_into_last_shard, also=("FF007",)),
    Fault("a tensor twice in one header", "FF008", after=raw_header(twice_in_header)),
    Fault("a pickle file", "FF009", after=write("pytorch_model.bin", b"\x80\x04N.")),
    Fault("code beside the weights", "FF010", after=write("modeling_gemma4.py", "raise SystemExit")),
    Fault("remote code asked for", "FF010", config(lambda c: c.__setitem__("auto_map", {"AutoModel": "m.M"})), also=("FF112",)),
    Fault("config.json is no JSON", "FF011", after=write(CONFIG, "{"), also=("FF112",), blind=True),
    Fault("config.json is missing", "FF011", after=remove(CONFIG), also=("FF112",)),
    Fault("config.json is a list", "FF011", after=write(CONFIG, "[]"), also=("FF112",)),
    Fault("deep JSON in config.json", "FF011", after=write(CONFIG, "[" * 100_000), also=("FF112",)),
    Fault("config.json is not UTF-8", "FF011", after=write(CONFIG, b"\xff\xfe{}"), also=("FF112",)),
    Fault("no format in the metadata", "FF012", after=edit_header(lambda h: h.pop("__metadata__"))),
    # config
    Fault("no quantization_config", "FF100", config(lambda c: c.pop("quantization_config")), also=("FF105",)),
    Fault("quant_method of another layout", "FF101", lambda e, _: e.section.__setitem__("quant_method", "compressed-tensors" if e.is_modelopt else "modelopt")),
    Fault("quant_algo FP8", "FF102", both("quant_algo", "quant_algo", "FP8"), layouts=MODELOPT_ONLY),
    Fault("another format", "FF102", section(lambda s: s.__setitem__("format", "pack-quantized")), layouts=CT_ONLY),
    Fault("8-bit weights stated", "FF102", group(lambda g: g["weights"].__setitem__("num_bits", 8))),
    Fault("integer type stated", "FF102", group(lambda g: g["weights"].__setitem__("type", "int"))),
    Fault("two config groups", "FF102", section(lambda s: s["config_groups"].__setitem__("group_1", s["config_groups"]["group_0"]))),
    Fault("group size 32", "FF103", group_size),
    Fault("W4A4 tensors stated as W4A16", "FF104", lambda e, _: (
        e.section["config_groups"]["group_0"].__setitem__("input_activations", None),
        e.is_modelopt and (e.section.__setitem__("quant_algo", "W4A16_NVFP4"), e.hf["quantization"].__setitem__("quant_algo", "W4A16_NVFP4")))),
    Fault("all input scales missing", "FF104",
          lambda e, _: [e.tensors.pop(n) for n in list(e.tensors) if n.endswith(f".{e.layout.input_global_scale}")]),
    Fault("weights only, stated as W4A4", "FF104", lambda e, _: (
        e.section["config_groups"]["group_0"].__setitem__("input_activations", e.section["config_groups"]["group_0"]["weights"] | ({} if e.is_modelopt else {"dynamic": "local"})),
        e.is_modelopt and (e.section.__setitem__("quant_algo", "NVFP4"), e.hf["quantization"].__setitem__("quant_algo", "NVFP4"))), variant=W4A16),
    Fault("hf_quant_config.json missing", "FF105", after=remove(HF), layouts=MODELOPT_ONLY),
    Fault("hf_quant_config.json with another list", "FF105", after=edit_json(HF, lambda h: h["quantization"]["exclude_modules"].pop()), layouts=MODELOPT_ONLY),
    Fault("hf_quant_config.json with another KV scheme", "FF105", after=edit_json(HF, lambda h: h["quantization"].__setitem__("kv_cache_quant_algo", "FP8")), layouts=MODELOPT_ONLY),
    Fault("the router not ignored", "FF106", ignore("", remove="layers.0.router")),
    Fault("lm_head not ignored", "FF106", ignore("", remove="lm_head")),
    Fault("BF16 attention not ignored", "FF106", ignore("", remove="layers.1.self_attn"), variant=ATTENTION_BF16),
    Fault("a quantized module ignored", "FF107", ignore(f"{TEXT}.0.mlp.up_proj")),
    Fault("a quantized layer ignored", "FF107", lambda e, _: e.ignore(f"{TEXT}.1.experts*" if e.is_modelopt else rf"re:.*layers\.1\.experts.*")),
    Fault("an ignore list for other names", "FF108", ignore("model.layers.0.mlp.experts.0.gate_proj")),
    Fault("a wildcard in the wrong layout", "FF108", ignore(f"{TEXT}.*.router*"), layouts=CT_ONLY),
    Fault("experts.1* catches experts 10 and 11", "FF109", ignore(f"{TEXT}.0.experts.1*"), layouts=MODELOPT_ONLY, also=("FF107",)),
    Fault("an entry that is a substring of others", "FF109", ignore("experts.1"), layouts=MODELOPT_ONLY, also=("FF108",)),
    Fault("targets that miss the experts", "FF110", group(lambda g: g.__setitem__("targets", [r"re:.*self_attn\..*", r"re:.*\.mlp\..*"])), layouts=CT_ONLY),
    Fault("FP8 KV cache stated, no scales", "FF111", lambda e, _: (
        e.section.__setitem__("kv_cache_scheme", {"dynamic": False, "num_bits": 8, "type": "float"}),
        e.is_modelopt and e.hf["quantization"].__setitem__("kv_cache_quant_algo", "FP8"))),
    Fault("KV scales without a scheme", "FF111", lambda e, _: (
        e.section.pop("kv_cache_scheme"), e.is_modelopt and e.hf["quantization"].__setitem__("kv_cache_quant_algo", None)), variant=FP8),
    Fault("one KV scale missing", "FF111", lambda e, _: e.tensors.pop(f"{TEXT}.2.self_attn.{e.layout.kv_scales['v_scale']}"), variant=FP8),
    Fault("4-bit KV cache stated", "FF111", section(lambda s: s.__setitem__("kv_cache_scheme", {"num_bits": 4, "type": "float"}))),
    Fault("another rope base", "FF112", config(lambda c: c["text_config"]["rope_parameters"]["full_attention"].__setitem__("rope_theta", 10000.0)), blind=False),
    Fault("softcapping lost", "FF112", config(lambda c: c["text_config"].pop("final_logit_softcapping")), blind=False),
    Fault("no version", "FF114", lambda e, _: e.section.pop("producer" if e.is_modelopt else "version")),
    Fault("status not compressed", "FF114", section(lambda s: s.__setitem__("quantization_status", "frozen")), layouts=CT_ONLY),
    Fault("a class nobody knows", "FF116", config(lambda c: c.__setitem__("architectures", ["GemmaNext"])), also=("FF112",)),
    # side files
    Fault("tokenizer missing", "FF120", after=remove("tokenizer.json")),
    Fault("chat template missing", "FF121", after=remove("chat_template.jinja")),
    Fault("processor config missing", "FF122", after=remove("processor_config.json")),
    Fault("generation config missing", "FF123", after=remove("generation_config.json")),
    Fault("another model's chat template", "FF124", after=write("chat_template.jinja", "{{ other }}"), blind=False),
    Fault("another model's tokenizer", "FF124", after=write("tokenizer.json", "{}"), blind=False),
    Fault("a tokenizer file of another model", "FF124", after=write("tokenizer.model", "x"), blind=False),
    Fault("special tokens left behind", "FF124", after=remove("special_tokens_map.json"), blind=False),
    # manifest
    Fault("an artifact's manifest", "FF130", after=manifest(lambda m: m.__setitem__("kind", "artifact")), manifest=True),
    Fault("a file changed after the write", "FF131", after=write("generation_config.json", "{}"), manifest=True, also=("FF124", "FF136")),
    Fault("a file added after the write", "FF131", after=write("README.md", "# x"), manifest=True),
    Fault("a recorded file is gone", "FF131", after=remove("special_tokens_map.json"), manifest=True, also=("FF124",)),
    Fault("a module recorded that is not there", "FF132", after=manifest(lambda m: m["quantized_modules"].append(f"{TEXT}.9.mlp.up_proj")), manifest=True),
    Fault("a module not recorded", "FF132", after=manifest(lambda m: m["quantized_modules"].pop()), manifest=True),
    Fault("a kept tensor recorded as quantized", "FF133", after=manifest(lambda m: m["tensors"].__setitem__(f"{TEXT}.0.layer_scalar", {"fate": "quantized", "reason": None})), manifest=True),
    Fault("a tensor dropped without a reason", "FF133", after=manifest(lambda m: m["tensors"].__setitem__("x.y", {"fate": "dropped", "reason": None})), manifest=True),
    Fault("another scheme recorded", "FF134", after=manifest(lambda m: m["recipe"].__setitem__("scheme", "W4A16")), manifest=True),
    Fault("a fallback of no module", "FF135", after=manifest(lambda m: m["fallbacks"].append({"module": "nowhere", "rule": "layer-max", "detail": ""})), manifest=True),
    Fault("a side file of another source", "FF136", after=rehashed(write("tokenizer.json", "{}")), manifest=True, also=("FF124",)),
    Fault("an invalid manifest", "FF011", after=write("manifest.json", "{}"), manifest=True),
)  # fmt: skip
