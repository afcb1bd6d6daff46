"""The role *exporter*: an artifact to a checkpoint in one layout.

Light by contract: key mapping, scale direction and config only, so it runs without any toolchain.
A whole minimal plugin::

    from fourfold.checkpoint.layouts import MODELOPT
    from fourfold.export import write_checkpoint
    from fourfold.hookspecs import hookimpl
    from fourfold.interfaces.exporter import Exporter
    from fourfold.plugins import Entry

    class PlainExporter(Exporter):
        def export(self, artifact, destination, progress):
            config = artifact.source_config | {"quantization_config": {"quant_method": "modelopt"}}
            write_checkpoint(artifact, destination, MODELOPT, {"config.json": config}, progress)

    @hookimpl
    def fourfold_register_exporters():
        return [Entry(name="plain", summary="modelopt keys, least config", implementation="my_plugin:PlainExporter")]
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
