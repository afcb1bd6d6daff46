"""A checkpoint from one layout to another, without the model: tensors renamed, scales turned, config rewritten."""

from fourfold.convert.engine import convert_checkpoint
from fourfold.convert.report import ConvertReport, InexactScale

__all__ = ["ConvertReport", "InexactScale", "convert_checkpoint"]
