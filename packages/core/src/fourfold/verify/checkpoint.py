"""The checkpoint under verification: everything rules look at, read once, with what could not be read noted.

Nothing here judges. A file that cannot be read leaves a note in ``unreadable``, an empty value in its place, and the
rule whose subject it is reports it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fourfold.checkpoint.index import CONFIG_FILE, TensorEntry, TensorFolder, is_side_file
from fourfold.checkpoint.layouts import COMPRESSED_TENSORS, MODELOPT, Layout
from fourfold.checkpoint.untrusted import MAX_LARGE_JSON_VALUES, read_json
from fourfold.config import Scheme
from fourfold.errors import CheckpointError, ConfigError, ModelError
from fourfold.manifest import MANIFEST_FILE, Manifest
from fourfold.models.gemma4 import Gemma4Moe, LinearModule, ModuleKind, read_gemma4, values_read_from_keys
from fourfold.models.gemma4_inputs import norm_before
from fourfold.verify.expected import imagine_source, require_whole
from fourfold.verify.folder import Folder, read_folder
from fourfold.verify.patterns import bounded
from fourfold.verify.schemes import stated_schemes, stored_schemes, text_entries
from fourfold.verify.shards import StoredTensor, TensorReader

if TYPE_CHECKING:
    import torch

HF_QUANT_CONFIG = "hf_quant_config.json"
#: Canonical parts of a module, in the order of ``Layout.suffixes``.
PARTS = ("packed_weight", "block_scale", "global_scale", "input_global_scale")
REQUIRED_PARTS = PARTS[:3]
_LAYOUTS = (MODELOPT, COMPRESSED_TENSORS)


class Source:
    """The unquantized model, read by position like the checkpoint; only a sound folder is accepted."""

    def __init__(self, path: Path) -> None:
        index = TensorFolder(path)
        index.close()
        self.path = index.path
        self.index = index
        self.folder = read_folder(self.path)
        for file, header in self.folder.shards.items():
            if header.faults:
                raise CheckpointError(f"{self.path / file}: {header.faults[0]}")
        self.reader = TensorReader(self.path, self.folder.shards)

    def side_files(self) -> tuple[str, ...]:
        """Names of tokenizer, template, processor and generation files."""
        return tuple(name for name in self.folder.files if is_side_file(name))


@dataclass
class Scalars:
    """A module's global scales in decode direction, as read; None where absent, NaN where not one float32.

    ``row_norm``: a bound on the norm of every row of the decoded weight, from block scales alone.
    """

    global_scale: float | None = None
    input_global_scale: float | None = None
    row_norm: float | None = None


@dataclass
class Checkpoint:
    """A checkpoint folder, its configs and manifest, the model it should hold, and what the pass over it gathered."""

    folder: Folder
    source: Source | None
    config: Mapping[str, Any] = field(default_factory=dict)
    manifest: Manifest | None = None
    gemma: Gemma4Moe | None = None
    model_tensors: Mapping[str, TensorEntry] = field(default_factory=dict)
    model_fault: str = ""
    unreadable: dict[str, str] = field(default_factory=dict)
    scalars: dict[str, Scalars] = field(default_factory=dict)
    #: Scales of an FP8 KV cache that are one number, as the pass comes by them.
    kv_scales: dict[str, float] = field(default_factory=dict)
    #: Weights of the norms in front of quantizable linears, float32 [H], as the pass comes by them.
    norms: dict[str, torch.Tensor] = field(default_factory=dict)
    #: Factors of transformed weights, float32 [O, 1] or [1, K], as the pass finds them.
    factors: dict[str, torch.Tensor] = field(default_factory=dict)
    #: Fingerprint of codes and block scales -> the first module that has it.
    seen: dict[bytes, str] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """The folder."""
        return self.folder.path

    @cached_property
    def quantization(self) -> Mapping[str, Any]:
        """``quantization_config`` of config.json, empty when absent or no object."""
        section = self.config.get("quantization_config")
        return section if isinstance(section, Mapping) else {}

    @cached_property
    def layouts_seen(self) -> dict[str, int]:
        """How many tensors carry a suffix that only one layout has."""
        own = {layout.name: set(layout.suffixes) - {layout.block_scale, "weight"} for layout in _LAYOUTS}
        seen = {
            name: sum(tensor.rpartition(".")[2] in suffixes for tensor in self.folder.tensors)
            for name, suffixes in own.items()
        }
        return {name: number for name, number in seen.items() if number}

    @cached_property
    def layout(self) -> Layout | None:
        """The layout most of the tensors are in; None when none of its names are there."""
        if not self.layouts_seen:
            return None
        best = max(self.layouts_seen, key=lambda name: self.layouts_seen[name])
        return next(layout for layout in _LAYOUTS if layout.name == best)

    @cached_property
    def modules(self) -> dict[str, dict[str, StoredTensor]]:
        """Quantized modules and their parts by canonical name, in file order.

        A module counts as quantized when any of its parts is there; a ``weight`` is a part when it is uint8 or
        stands beside scales.
        """
        if self.layout is None:
            return {}
        canonical = dict(zip(self.layout.suffixes, PARTS, strict=True))
        found: dict[str, dict[str, StoredTensor]] = {}
        plain: list[tuple[str, str, StoredTensor]] = []
        for tensor in self.folder.in_file_order:
            module, _, suffix = tensor.name.rpartition(".")
            if suffix not in canonical or not module:
                continue
            if suffix == "weight" and tensor.dtype != "U8":
                plain.append((module, canonical[suffix], tensor))
            else:
                found.setdefault(module, {})[canonical[suffix]] = tensor
        for module, part, tensor in plain:
            if module in found:
                found[module][part] = tensor
        return found

    @cached_property
    def plain(self) -> dict[str, StoredTensor]:
        """Tensors that are no part of a quantized module, in file order."""
        parts = {tensor.name for module in self.modules.values() for tensor in module.values()}
        return {tensor.name: tensor for tensor in self.folder.in_file_order if tensor.name not in parts}

    @cached_property
    def kv_names(self) -> dict[str, StoredTensor]:
        """Scales of an FP8 KV cache."""
        return {name: t for name, t in self.plain.items() if name.rpartition(".")[2] in ("k_scale", "v_scale")}

    @cached_property
    def stated_schemes(self) -> Mapping[str, Scheme]:
        """What config.json says of the quantized modules, without those it says nothing known of."""
        return stated_schemes(self.quantization, self.layout, self.modules)

    @cached_property
    def schemes(self) -> Mapping[str, Scheme]:
        """What the tensors say: W4A4 when most modules of which the config says the same have an input scale."""
        with_inputs = {name: PARTS[3] in parts for name, parts in self.modules.items()}
        return stored_schemes(with_inputs, self.stated_schemes)

    @cached_property
    def linears(self) -> Mapping[str, LinearModule]:
        """Quantizable linears of the model by name; empty when the model is unknown."""
        return {str(name): module for name, module in self.gemma.linears.items()} if self.gemma else {}

    @cached_property
    def input_norms(self) -> frozenset[str]:
        """Norms whose output some linear reads; their weights tell what its input can be."""
        return frozenset(filter(None, map(norm_before, self.linears.values())))

    @cached_property
    def kept_names(self) -> frozenset[str]:
        """Tensors that no scheme touches; empty when the model is unknown."""
        return frozenset(self.gemma.kept) if self.gemma else frozenset()

    @cached_property
    def fused_names(self) -> frozenset[str]:
        """The model's fused expert tensors."""
        return frozenset(m.tensor for m in self.linears.values() if m.kind is ModuleKind.EXPERT)

    @cached_property
    def expert_layers(self) -> dict[int, list[LinearModule]]:
        """Expert matrices by layer."""
        layers: dict[int, list[LinearModule]] = {}
        for module in self.linears.values():
            if module.kind is ModuleKind.EXPERT:
                layers.setdefault(module.layer, []).append(module)
        return layers

    @cached_property
    def bf16_linears(self) -> tuple[str, ...]:
        """Modules that a server builds as linears and that are not quantized here; ``lm_head`` is always one.

        Fused experts of a layer stand for its first expert's three matrices, which is where servers look.
        """
        names = {"lm_head"}
        for name, tensor in self.plain.items():
            module, _, leaf = name.rpartition(".")
            if leaf == "weight" and len(tensor.shape) == 2 and not module.endswith(("embed_tokens", "_per_layer")):
                names.add(module)
            elif len(tensor.shape) == 3 and name.endswith(("experts.gate_up_proj", "experts.down_proj")):
                names |= {f"{module}.0.{part}" for part in ("gate_proj", "up_proj", "down_proj")}
        unquantized = names - self.modules.keys()
        return tuple(sorted(unquantized | values_read_from_keys(unquantized)))

    @cached_property
    def module_names(self) -> frozenset[str]:
        """Every module of the un-fused model: all ancestors of all tensors, and ``lm_head``."""
        names = {"lm_head"}
        for name in (*self.folder.tensors, *self.linears, *self.kept_names):
            parts = name.split(".")
            names |= {".".join(parts[:end]) for end in range(1, len(parts))}
        return frozenset(names | self.linears.keys() | values_read_from_keys(names))

    def content(self, name: str) -> Any:
        """A JSON file of the folder, parsed anew; None where it is not there, or cannot be read (which is noted)."""
        if name not in self.folder.files or name in self.unreadable or name in self.folder.links:
            return None
        try:
            return read_json(self.path / name, max_values=MAX_LARGE_JSON_VALUES)
        except CheckpointError as error:
            self.unreadable[name] = str(error)
            return None

    def ignore_patterns(self) -> list[str]:
        """What is looked at of the list of unquantized modules in config.json."""
        names = text_entries(self.quantization.get("ignore"))
        return bounded(names, self.layout.name if self.layout is not None else "")

    def units(self) -> Iterator[tuple[str, Mapping[str, StoredTensor]]]:
        """What is read at once: a module with its parts, or a plain tensor alone (under the part ``""``).

        In order of the first byte in the first file, so that a pass reads forward; every tensor is in one unit.
        """
        units: list[tuple[str, Mapping[str, StoredTensor]]] = list(self.modules.items())
        units += [(name, {"": tensor}) for name, tensor in self.plain.items()]

        def position(unit: tuple[str, Mapping[str, StoredTensor]]) -> tuple[str, int]:
            # The largest part decides: the scalars of all modules stand together at the front of a shard.
            largest = max(unit[1].values(), key=lambda tensor: tensor.nbytes)
            return largest.file, largest.begin

        yield from sorted(units, key=position)


def open_checkpoint(path: Path, source: Path | None) -> Checkpoint:
    """Read names, headers and configs. :class:`CheckpointError` when there is no folder, or the source is broken."""
    folder = read_folder(Path(path))
    checkpoint = Checkpoint(folder, Source(source) if source is not None else None)
    checkpoint.config = _read_object(checkpoint, CONFIG_FILE) or {}
    if MANIFEST_FILE in folder.files:
        content = _read_object(checkpoint, MANIFEST_FILE)
        try:
            checkpoint.manifest = None if content is None else Manifest.parse(content, where="")
        except ConfigError as error:
            checkpoint.unreadable[MANIFEST_FILE] = str(error)
    _read_model(checkpoint)
    return checkpoint


def _read_object(checkpoint: Checkpoint, name: str) -> dict[str, Any] | None:
    try:
        content = checkpoint.folder.json(name)
    except CheckpointError as error:
        checkpoint.unreadable[name] = str(error)
        return None
    if content is not None and not isinstance(content, dict):
        checkpoint.unreadable[name] = "not a JSON object"
        return None
    return content


def _read_model(checkpoint: Checkpoint) -> None:
    if checkpoint.source is not None:
        checkpoint.gemma = read_gemma4(checkpoint.source.index)
        require_whole(checkpoint.source.index, checkpoint.gemma)
        checkpoint.model_tensors = checkpoint.source.index.tensors
        return
    try:
        model = imagine_source(checkpoint.config, checkpoint.path / CONFIG_FILE)
        checkpoint.gemma, checkpoint.model_tensors = read_gemma4(model), model.tensors
    except (ModelError, KeyError, TypeError, ValueError) as error:
        checkpoint.model_fault = str(error)


def stored_bytes(tensors: Mapping[str, StoredTensor]) -> int:
    """Bytes of a unit."""
    return sum(tensor.nbytes for tensor in tensors.values())
