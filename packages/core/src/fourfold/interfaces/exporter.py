"""The role *exporter*: an artifact to a checkpoint in one layout.

Light by contract: key mapping, scale direction and config only, so it runs without any toolchain.
A whole minimal plugin::

    from fourfold.hookspecs import hookimpl
    from fourfold.interfaces.exporter import Exporter
    from fourfold.plugins import Entry

    ALGORITHMS = {"W4A4": "NVFP4", "W4A16": "W4A16_NVFP4"}

    class PlainExporter(Exporter):
        def export(self, artifact, destination, progress):
            from fourfold.checkpoint.layouts import MODELOPT  # imports torch, which registering must not
            from fourfold.export import write_checkpoint
            from fourfold.models.gemma4 import values_read_from_keys

            manifest, recipe = artifact.manifest, artifact.manifest.recipe
            four_bit = {"num_bits": 4, "type": "float", "group_size": 16, "dynamic": False}
            group = {"targets": ["Linear"], "weights": four_bit}
            if recipe.scheme == "W4A4":
                group["input_activations"] = four_bit
            matrices = [name for name in artifact.kept() if name.endswith((".weight", ".experts.down_proj"))]
            matrices = [name for name in matrices if len(artifact.tensors.entry(name).shape) > 1]
            linears = {"lm_head", *(name.rpartition(".")[0] for name in matrices)}
            ignore = sorted(linears | values_read_from_keys(linears))
            producer = {"name": "my_plugin", "version": "1.0.0"}
            facts = {
                "quant_method": "modelopt", "quant_algo": ALGORITHMS[recipe.scheme], "ignore": ignore,
                "config_groups": {"group_0": group}, "producer": producer,
            }
            unified = {"quant_algo": ALGORITHMS[recipe.scheme], "group_size": 16, "exclude_modules": ignore}
            if recipe.weights_only:  # modules of both schemes: each one's algorithm by its name
                each = {name: {"quant_algo": ALGORITHMS[recipe.scheme_of(name)]} for name in manifest.quantized_modules}
                facts |= {"quant_algo": "MIXED_PRECISION", "quantized_layers": each}
                unified |= {"quant_algo": "MIXED_PRECISION", "quantized_layers": each}
            if recipe.kv_cache == "fp8":
                facts["kv_cache_scheme"] = {"num_bits": 8, "type": "float", "dynamic": False}
                unified["kv_cache_quant_algo"] = "FP8"
            files = {
                "config.json": artifact.source_config | {"quantization_config": facts},
                "hf_quant_config.json": {"producer": producer, "quantization": unified},
            }
            write_checkpoint(artifact, destination, MODELOPT, files, progress)

    @hookimpl
    def fourfold_register_exporters():
        return [Entry(name="plain", summary="modelopt layout, least config", implementation="my_plugin:PlainExporter")]
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from fourfold.config import Options

if TYPE_CHECKING:
    from fourfold.artifact import Artifact
    from fourfold.progress import Progress

OptionsT = TypeVar("OptionsT", bound=Options)


class Exporter(ABC, Generic[OptionsT]):
    """Writes checkpoints of one layout; its entry's name is the layout's name."""

    def __init__(self, options: OptionsT) -> None:
        self.options = options

    @abstractmethod
    def export(self, artifact: Artifact, destination: Path, progress: Progress) -> None:
        """Write tensors, config and side files into ``destination``, an empty folder the caller renames at the end."""
