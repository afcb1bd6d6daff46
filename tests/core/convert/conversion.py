"""What the tests of both files share."""

from __future__ import annotations

from pathlib import Path

from fourfold.convert import ConvertReport, convert_checkpoint
from fourfold.plugins import Registry
from fourfold.progress import NoProgress

BACK = {"modelopt": "compressed-tensors", "compressed-tensors": "modelopt"}


def convert(path: Path, layout: str, destination: Path, registry: Registry) -> ConvertReport:
    return convert_checkpoint(path, layout, destination, registry, NoProgress())
