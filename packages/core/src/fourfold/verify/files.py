"""Rules about files: whole, inside the folder, counted truly, and nothing that could run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fourfold.checkpoint.index import CONFIG_FILE, INDEX_FILE, SINGLE_FILE, is_side_file

if TYPE_CHECKING:
    from fourfold.verify.checkpoint import Checkpoint
    from fourfold.verify.rule import Look

_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz", ".h5", ".msgpack")


def weights_present(look: Look, checkpoint: Checkpoint) -> None:
    """There are safetensors files, and tensors in them."""
    look.count()
    if not checkpoint.folder.shards:
        look.wrong(
            SINGLE_FILE, found="no safetensors file", expected=f"{SINGLE_FILE}, or shards and {INDEX_FILE}",
            message="the folder holds no weights",
        )  # fmt: skip


def shards_whole(look: Look, checkpoint: Checkpoint) -> None:
    """Every shard is a well-formed safetensors file of the length its header says."""
    look.count(len(checkpoint.folder.shards))
    for file, header in checkpoint.folder.shards.items():
        for fault in header.faults:
            look.wrong(
                file, found=fault, expected="a whole safetensors file",
                message=f"{file} {fault}; write or download it again",
            )  # fmt: skip


def shards_readable_by_transformers(look: Look, checkpoint: Checkpoint) -> None:
    """Every shard states ``format: pt``."""
    look.count(len(checkpoint.folder.shards))
    for file, header in checkpoint.folder.shards.items():
        if not header.faults and header.metadata.get("format") != "pt":
            look.wrong(
                file, found=header.metadata.get("format", "no format"), expected="metadata format: pt",
                message=f"{file} does not state its format; write it with metadata {{'format': 'pt'}}",
            )  # fmt: skip


def index_stays_inside(look: Look, checkpoint: Checkpoint) -> None:
    """The index names plain files of this folder."""
    look.count(len(set(checkpoint.folder.claims.values())) if checkpoint.folder.claims else 0)
    for name in checkpoint.folder.escapes:
        look.wrong(
            INDEX_FILE, found=repr(name), expected="a file name without folders",
            message=f"the index points outside the checkpoint, to {name!r}; it was not opened",
        )  # fmt: skip


def links_stay_inside(look: Look, checkpoint: Checkpoint) -> None:
    """No symbolic link leaves the folder; the blobs of a hub cache that the folder is a snapshot of are allowed."""
    look.count(len(checkpoint.folder.files))
    for name, target in checkpoint.folder.links.items():
        look.wrong(
            name, found=f"a link to {target}", expected="a file of the folder",
            message=f"{name} is a link that leaves the checkpoint; it was not opened: replace it by the file",
        )  # fmt: skip


def index_true(look: Look, checkpoint: Checkpoint) -> None:
    """Every tensor of the index is in the shard it names."""
    folder = checkpoint.folder
    look.count(len(folder.claims or ()))
    if folder.index_fault:
        look.wrong(
            INDEX_FILE, found=folder.index_fault, expected="weight_map: tensor names to file names",
            message=f"{INDEX_FILE} cannot be used: {folder.index_fault}",
        )  # fmt: skip
    for file in folder.absent:
        look.wrong(
            file, found="no such file", expected="a shard that the index names",
            message=f"the index names {file}, which is not there",
        )  # fmt: skip
    for name, file in (folder.claims or {}).items():
        tensor = folder.tensors.get(name)
        sound = file in folder.shards and not folder.shards[file].faults
        if sound and (tensor is None or tensor.file != file):
            found = "nowhere" if tensor is None else tensor.file
            look.wrong(
                name, found=found, expected=file, message=f"the index says that {name} is in {file}; it is in {found}"
            )


def index_complete(look: Look, checkpoint: Checkpoint) -> None:
    """The index lists every tensor of every safetensors file; several shards have an index."""
    folder = checkpoint.folder
    for file in folder.strays:
        look.wrong(
            file, found="a shard that nothing names", expected="no such file",
            message=f"{file} is left over from another write; remove it",
        )  # fmt: skip
    if folder.claims is None:
        look.count(len(folder.strays))
        if len(folder.shards) > 1 and folder.index_fault is None:
            look.count()
            look.wrong(
                INDEX_FILE, found=f"{len(folder.shards)} shards and no index", expected=INDEX_FILE,
                message="the shards have no index, so loaders cannot know which belong together",
            )  # fmt: skip
        return
    look.count(len(folder.tensors))
    for name in folder.tensors.keys() - folder.claims.keys():
        look.wrong(
            name, found="not in the index", expected=f"an entry in {INDEX_FILE}",
            message=f"{name} is stored but not listed in the index, so transformers never loads it",
        )  # fmt: skip


def total_size_true(look: Look, checkpoint: Checkpoint) -> None:
    """``metadata.total_size`` of the index is the bytes of all tensors."""
    folder = checkpoint.folder
    metadata = folder.index.get("metadata") if folder.index else None
    if not isinstance(metadata, dict) or "total_size" not in metadata:
        return
    look.count()
    actual = sum(tensor.nbytes for tensor in folder.tensors.values())
    if metadata["total_size"] != actual:
        look.wrong(
            f"{INDEX_FILE}: metadata.total_size", found=metadata["total_size"], expected=actual,
            message="the index counts another number of bytes than the shards hold; it belongs to another write",
        )  # fmt: skip


def stored_once(look: Look, checkpoint: Checkpoint) -> None:
    """No tensor name stands twice, in one header or in two shards."""
    look.count(len(checkpoint.folder.tensors))
    for name, first, second in checkpoint.folder.copies:
        where = f"twice in {first}" if first == second else f"in {first} and in {second}"
        look.wrong(
            name, found=where, expected="one copy",
            message=f"{name} stands {where}; which one is loaded depends on the server",
        )  # fmt: skip


def no_pickles(look: Look, checkpoint: Checkpoint) -> None:
    """No file of a format that can run code when loaded; such files are refused by name, never opened."""
    look.count(len(checkpoint.folder.files))
    for name in checkpoint.folder.files:
        if name.lower().endswith(_PICKLES):
            look.wrong(
                name, found="a pickle or another format that can run code", expected="safetensors only",
                message=f"{name} was not opened; remove it",
            )  # fmt: skip


def json_readable(look: Look, checkpoint: Checkpoint) -> None:
    """config.json is there, and every JSON file that a loader reads is valid."""
    for name in checkpoint.folder.files:
        if is_side_file(name) and name.endswith(".json"):
            look.count()
            checkpoint.content(name)
    look.count(1 + len(checkpoint.unreadable))
    if CONFIG_FILE not in checkpoint.folder.files:
        look.wrong(CONFIG_FILE, found="absent", expected="the model's config", message="there is no config.json")
    for name, fault in checkpoint.unreadable.items():
        look.wrong(name, found=fault, expected="valid JSON", message=f"{name} cannot be used: {fault}")
