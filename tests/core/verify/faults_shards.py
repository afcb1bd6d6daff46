"""Faults in shards, index and the folder itself."""

from __future__ import annotations

from .faults import Fault
from .good_checkpoints import TEXT
from .planting_files import (
    CONFIG,
    INDEX,
    SHARD,
    SHARDED,
    claim,
    config,
    copy_into_last_shard,
    drop_last_shard,
    drop_weights,
    edit_header,
    edit_json,
    exchange_first_two_shards,
    first_entry,
    first_shape,
    link_outside,
    list_ghost,
    overlap,
    raw_header,
    remove,
    rewrite,
    stray_shard,
    truncate,
    twice_in_header,
    write,
)

SHARD_FAULTS = (
    # files
    Fault("no weights", "FF001", after=drop_weights, also=("FF020", "FF022", "FF028", "FF029", "FF035")),
    Fault("truncated shard", "FF002", after=truncate, also=("FF024", "FF027", "FF020", "FF022", "FF028")),
    Fault("shard of a few bytes", "FF002", after=write(SHARD, b"\x10\0\0"), also=("FF020", "FF022", "FF028", "FF029")),
    Fault(
        "header bomb",
        "FF002",
        after=write(SHARD, (2**62).to_bytes(8, "little") + b"{}"),
        also=("FF020", "FF022", "FF028", "FF029"),
    ),
    Fault(
        "deep JSON in a header",
        "FF002",
        after=lambda f: rewrite(f / SHARD, b"[" * 100_000, b""),
        also=("FF020", "FF022", "FF028", "FF029"),
    ),
    Fault(
        "a name that is not UTF-8",
        "FF002",
        after=raw_header(lambda t: t.replace(b"layer_scalar", b"layer_\xff\xfe\xfdar")),
        also=("FF020", "FF022", "FF028", "FF029"),
    ),
    Fault(
        "a huge declared shape", "FF002", after=first_shape([2**47, 2**47]), also=("FF024", "FF025", "FF028", "FF029")
    ),
    Fault("a negative shape", "FF002", after=first_shape([-1]), also=("FF024", "FF025", "FF028", "FF029")),
    Fault(
        "an unknown dtype",
        "FF002",
        after=edit_header(lambda h: first_entry(h).__setitem__("dtype", "F4")),
        also=("FF024", "FF025", "FF028", "FF029"),
    ),
    Fault(
        "overlapping tensors",
        "FF002",
        after=edit_header(overlap),
    ),
    Fault("bytes after the last tensor", "FF002", after=lambda f: (f / SHARD).open("ab").write(b"\0" * 64)),
    Fault("path traversal in the index", "FF003", variant=SHARDED, after=claim("../../etc/passwd"), also=("FF005",)),
    Fault("absolute path in the index", "FF003", variant=SHARDED, after=claim("/etc/passwd"), also=("FF005",)),
    Fault("a link out of the folder", "FF004", after=link_outside),
    Fault(
        "the index names the wrong shard", "FF005", variant=SHARDED, after=edit_json(INDEX, exchange_first_two_shards)
    ),
    Fault(
        "a shard is missing",
        "FF005",
        variant=SHARDED,
        after=drop_last_shard,
        also=("FF007", "FF028", "FF024", "FF025", "FF106", "FF020", "FF022", "FF029"),
    ),
    Fault("an index without weight_map", "FF005", variant=SHARDED, after=write(INDEX, '{"metadata": {}}')),
    Fault("the index lists a tensor that is not there", "FF005", variant=SHARDED, after=edit_json(INDEX, list_ghost)),
    Fault(
        "a partial index",
        "FF006",
        variant=SHARDED,
        after=edit_json(INDEX, lambda i: i["weight_map"].pop(f"{TEXT}.0.layer_scalar")),
    ),
    Fault("shards without an index", "FF006", variant=SHARDED, after=remove(INDEX)),
    Fault("a shard of another write", "FF006", variant=SHARDED, after=stray_shard),
    Fault(
        "stale total_size",
        "FF007",
        variant=SHARDED,
        after=edit_json(INDEX, lambda i: i["metadata"].__setitem__("total_size", 1)),
    ),
    Fault("a tensor in two shards", "FF008", variant=SHARDED, after=copy_into_last_shard, also=("FF007",)),
    Fault("a tensor twice in one header", "FF008", after=raw_header(twice_in_header)),
    Fault("a pickle file", "FF009", after=write("pytorch_model.bin", b"\x80\x04N.")),
    Fault("code beside the weights", "FF010", after=write("modeling_gemma4.py", "raise SystemExit")),
    Fault(
        "remote code asked for",
        "FF010",
        config(lambda c: c.__setitem__("auto_map", {"AutoModel": "m.M"})),
        also=("FF112",),
    ),
    Fault("config.json is no JSON", "FF011", after=write(CONFIG, "{"), also=("FF112",), blind=True),
    Fault("config.json is missing", "FF011", after=remove(CONFIG), also=("FF112",)),
    Fault("config.json is a list", "FF011", after=write(CONFIG, "[]"), also=("FF112",)),
    Fault("deep JSON in config.json", "FF011", after=write(CONFIG, "[" * 100_000), also=("FF112",)),
    Fault("config.json is not UTF-8", "FF011", after=write(CONFIG, b"\xff\xfe{}"), also=("FF112",)),
    Fault("no format in the metadata", "FF012", after=edit_header(lambda h: h.pop("__metadata__"))),
)
