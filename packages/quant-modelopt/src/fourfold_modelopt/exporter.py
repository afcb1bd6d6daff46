"""The exporter ``modelopt``: an artifact to ModelOpt's unified Hugging Face layout. Needs no toolchain.

Beside the tensors (:data:`fourfold.checkpoint.layouts.MODELOPT`) it writes what a server reads: ``quantization_config``
in ``config.json`` and the same in ``hf_quant_config.json``, both as ModelOpt's ``export_hf_checkpoint`` words them.
Where modules differ in scheme that is ``MIXED_PRECISION``, with every module's own algorithm in ``quantized_layers``.

The list of unquantized modules uses whole names and one kind of pattern, ``prefix*`` where nothing below the prefix
is quantized. vLLM matches these patterns as substrings as well, so a prefix always ends with a whole name.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fourfold.checkpoint.layouts import MODELOPT
from fourfold.config import KVCache, Options, Scheme
from fourfold.export import write_checkpoint
from fourfold.interfaces.exporter import Exporter
from fourfold.models.gemma4_kept import unquantized_linears
from fourfold.nvfp4 import BLOCK_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from fourfold.artifact import Artifact
    from fourfold.progress import Progress

_QUANT_ALGO = {Scheme.W4A4: "NVFP4", Scheme.W4A16: "W4A16_NVFP4"}
_MIXED = "MIXED_PRECISION"
#: A part of a text layer, such as ``model.language_model.layers.3.router``.
_LAYER_PART = re.compile(r"^(?:.+\.)?layers\.\d+\.[^.]+")
_TEXT_MODEL = re.compile(r"^model\.(?:language_model\.)?(?=layers\.|embed_tokens|norm\.|per_layer)")


class ModelOptExporter(Exporter[Options]):
    """Writes the layout that ``export_hf_checkpoint`` writes, from any quantizer's artifact."""

    def export(self, artifact: Artifact, destination: Path, progress: Progress) -> None:
        """See :class:`fourfold.interfaces.exporter.Exporter`."""
        hf_quant_config = quantization(artifact)
        config = artifact.source_config | {"quantization_config": server_config(hf_quant_config)}
        files = {"config.json": config, "hf_quant_config.json": hf_quant_config}
        write_checkpoint(artifact, destination, MODELOPT, files, progress)


def quantization(artifact: Artifact) -> dict[str, Any]:
    """The content of ``hf_quant_config.json``."""
    recipe = artifact.manifest.recipe
    facts: dict[str, Any] = {
        "quant_algo": _QUANT_ALGO[recipe.scheme],
        "kv_cache_quant_algo": "FP8" if recipe.kv_cache is KVCache.FP8 else None,
        "group_size": BLOCK_SIZE,
        "exclude_modules": exclude_modules(artifact),
    }
    if recipe.weights_only:
        facts["quant_algo"] = _MIXED
        facts["quantized_layers"] = {
            name: {"quant_algo": _QUANT_ALGO[recipe.scheme_of(name)], "group_size": BLOCK_SIZE}
            for name in artifact.manifest.quantized_modules
        }
    return {"producer": _producer(artifact), "quantization": facts}


def server_config(hf_quant_config: dict[str, Any]) -> dict[str, Any]:
    """``quantization_config`` of ``config.json``: the same facts in the words that servers look for."""
    facts = hf_quant_config["quantization"]
    config = {
        "config_groups": _config_groups(facts),
        "ignore": facts["exclude_modules"],
        "quant_algo": facts["quant_algo"],
        "producer": hf_quant_config["producer"],
        "quant_method": "modelopt",
    }
    if "quantized_layers" in facts:
        config["quantized_layers"] = facts["quantized_layers"]
    if facts["kv_cache_quant_algo"]:
        config["kv_cache_scheme"] = {"dynamic": False, "num_bits": 8, "type": "float"}
    return config


def _config_groups(facts: Mapping[str, Any]) -> dict[str, Any]:
    """One group of every linear, or of mixed ones a group an algorithm with its modules by name."""
    modules = {facts["quant_algo"]: ["Linear"]}
    if layers := facts.get("quantized_layers"):
        algorithms = (_QUANT_ALGO[scheme] for scheme in (Scheme.W4A16, Scheme.W4A4))
        modules = {a: sorted(name for name, layer in layers.items() if layer["quant_algo"] == a) for a in algorithms}
    groups = {}
    for index, (algorithm, names) in enumerate(modules.items()):
        four_bit = {"dynamic": False, "num_bits": 4, "type": "float", "group_size": facts["group_size"]}
        groups[f"group_{index}"] = {"weights": four_bit, "targets": names}
        if algorithm == _QUANT_ALGO[Scheme.W4A4]:
            groups[f"group_{index}"]["input_activations"] = dict(four_bit)
    return groups


def exclude_modules(artifact: Artifact) -> list[str]:
    """Names and ``prefix*`` patterns that cover every linear left unquantized and nothing quantized, sorted."""
    quantized = _with_ancestors(artifact.manifest.quantized_modules)
    patterns = set()
    for name in unquantized_linears(artifact.kept_shapes()):
        prefix = _widest_prefix(name)
        patterns.add(name if prefix is None or prefix in quantized else f"{prefix}*")
    return sorted(patterns)


def _with_ancestors(modules: Iterable[str]) -> set[str]:
    """The modules and all that they stand in."""
    names = set(modules)
    for module in modules:
        parent = module.rpartition(".")[0]
        while parent and parent not in names:
            names.add(parent)
            parent = parent.rpartition(".")[0]
    return names


def _widest_prefix(name: str) -> str | None:
    """The largest unit that is excluded as a whole: a part of a text layer, or what stands beside the text model."""
    if _TEXT_MODEL.match(name):
        part = _LAYER_PART.match(name)
        return part[0] if part else None
    return ".".join(name.split(".")[:2]) if name.startswith("model.") else None


def _producer(artifact: Artifact) -> dict[str, str]:
    """Who computed the values: ModelOpt where it did, else Fourfold."""
    manifest = artifact.manifest
    if manifest.quantizer.name == "modelopt":
        return {"name": "modelopt", "version": manifest.packages.get("nvidia-modelopt", "unknown")}
    return {"name": "fourfold", "version": manifest.packages.get("fourfold", "unknown")}
