"""A Gemma 4 text model with one decoder layer's weights in memory at a time, its experts un-fused.

Shape letters: B rows, T tokens a row, H hidden, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from fourfold.checkpoint.reader import TensorReader
from fourfold.engine.model import LayerwiseModel
from fourfold.reference.options import ReferenceUnfuserOptions
from fourfold.reference.unfuser import ReferenceUnfuser

if TYPE_CHECKING:
    from torch import nn

    from fourfold.checkpoint.index import TensorFolder
    from fourfold.interfaces.unfuser import Unfuser


@dataclass(frozen=True)
class Rows:
    """A batch of text, int64 [B, T] without padding, as ``model`` calls its layers with it."""

    model: LayerwiseModel
    batch: dict[str, torch.Tensor]

    def through(self, index: int, layer: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        """Layer ``index``'s output [B, T, H] of ``hidden`` [B, T, H]."""
        out: torch.Tensor = layer(hidden, **self.model.layer_arguments(self.batch, index))
        return out


class TextModel:
    """A Gemma 4 text model read from ``source``, computing in ``dtype`` on ``device``.

    Raises :class:`fourfold.errors.ModelError` for a model whose layers share keys and values, or whose tensors do not
    fit transformers' Gemma 4.
    """

    def __init__(self, source: TensorFolder, *, device: str, dtype: torch.dtype) -> None:
        names = tuple(source.tensors)
        self._model = LayerwiseModel(source.path, TensorReader(source), names, device, "sdpa", dtype=dtype)
        self._unfuser: Unfuser[Any] = ReferenceUnfuser(ReferenceUnfuserOptions())

    @property
    def num_layers(self) -> int:
        """Decoder layers."""
        return len(self._model.layers)

    def rows(self, input_ids: torch.Tensor) -> Rows:
        """``input_ids`` [B, T], every one of them a token."""
        return Rows(self._model, {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)})

    def embed(self, rows: Rows) -> torch.Tensor:
        """What the first layer is given, [B, T, H]."""
        return self._model.embed(rows.batch)

    def logits(self, rows: Rows, hidden: torch.Tensor) -> torch.Tensor:
        """float32 [B, T, V] of the last layer's output ``hidden`` [B, T, H]."""
        return self._model.logits(rows.batch, hidden)

    def take_layer(self, index: int) -> nn.Module:
        """Decoder layer ``index`` with its weights, experts un-fused; it is the caller's to let go."""
        layer = self._model.load_layer(index)
        self._unfuser.unfuse(layer)
        self._model.layers[index] = None
        return layer
