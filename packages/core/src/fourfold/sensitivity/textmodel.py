"""The text path of a Gemma 4 model with one decoder layer's weights in memory at a time.

The model is built without memory (on torch's ``meta`` device). Embedding, final norm and head are read once; decoder
layers are handed out one by one, their experts un-fused. What a layer is called with, beside the hidden states, does
not depend on them: masks, positions, rotary embeddings. So the model's own forward runs once a batch with recorders in
the layers' places, and a layer can then be called with any hidden states, exactly as the model would call it.

Constants are those of the stored model: the embedding's scale is a BF16 number (55.5 for a width of 3072), also where
layers compute in float32, since that is what a server multiplies with.

Shape letters: B rows, T tokens a row, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections import UserDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fourfold.errors import ModelError
from fourfold.interfaces.unfuser import Unfuser
from fourfold.reference.options import ReferenceUnfuserOptions
from fourfold.reference.unfuser import ReferenceUnfuser

if TYPE_CHECKING:
    from fourfold.checkpoint.index import TensorFolder

_SHARED_KV = "shared_kv_states"


@dataclass(frozen=True)
class Call:
    """What a layer is called with beside the hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def __call__(self, layer: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        """The layer's output [B, T, H]."""
        kwargs = dict(self.kwargs)
        if _SHARED_KV in kwargs:
            # Layers leave their keys and values in it for others; no layer here reads them, and they would pile up.
            kwargs[_SHARED_KV] = UserDict()
        return layer(hidden, *self.args, **kwargs)  # type: ignore[no-any-return]


class _Recorder(nn.Module):
    """Stands in a layer's place: keeps what it is called with, passes ``replacement`` or its input on."""

    def __init__(self) -> None:
        super().__init__()
        self.received: torch.Tensor | None = None
        self.call: Call | None = None
        self.replacement: torch.Tensor | None = None

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        self.received, self.call = hidden_states, Call(args, kwargs)
        return hidden_states if self.replacement is None else self.replacement


class TextModel:
    """A Gemma 4 text model read from ``source``, computing in ``dtype`` on ``device``.

    Raises :class:`ModelError` for a model whose layers share keys and values, or whose tensors do not fit
    transformers' Gemma 4.
    """

    def __init__(self, source: TensorFolder, prefix: str, *, device: torch.device, dtype: torch.dtype) -> None:
        self._source, self._prefix, self._device, self._dtype = source, prefix, device, dtype
        config = _text_config(source.path)
        with torch.device("meta"):
            self._model = _causal_lm(config)
        body = self._model.model
        self._layers: list[nn.Module | None] = list(body.layers)
        self._recorders = [_Recorder() for _ in self._layers]
        body.layers = nn.ModuleList(self._recorders)
        self._read_frame(config)
        self._unfuser: Unfuser[ReferenceUnfuserOptions] = ReferenceUnfuser(ReferenceUnfuserOptions())

    @property
    def num_layers(self) -> int:
        """Decoder layers."""
        return len(self._layers)

    def embed(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, tuple[Call, ...]]:
        """What the first layer is given for ``input_ids`` [B, T]: [B, T, H], and how each layer is called."""
        self._model(input_ids=input_ids.to(self._device), use_cache=False, logits_to_keep=1)
        embedded = self._recorders[0].received
        calls = tuple(recorder.call for recorder in self._recorders if recorder.call is not None)
        if embedded is None or len(calls) != self.num_layers:
            raise ModelError(f"{self._source.path}: transformers did not call every layer of the model")
        for recorder in self._recorders:
            recorder.received = recorder.call = None
        return embedded, calls

    def logits(self, input_ids: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """float32 [B, T, V] of the last layer's output ``hidden`` [B, T, H], through norm, head and soft cap."""
        self._recorders[-1].replacement = hidden
        logits: torch.Tensor = self._model(input_ids=input_ids.to(self._device), use_cache=False).logits
        for recorder in self._recorders:
            recorder.received = recorder.call = recorder.replacement = None
        return logits.float()

    def take_layer(self, index: int) -> nn.Module:
        """Decoder layer ``index`` with its weights, experts un-fused; it is gone from the model then."""
        layer = self._layers[index]
        if layer is None:
            raise ModelError(f"layer {index} was taken before")
        self._layers[index] = None
        prefix = f"{self._prefix}layers.{index}."
        self._load(layer, {name.removeprefix(prefix): name for name in self._source.tensors if name.startswith(prefix)})
        self._unfuser.unfuse(layer)
        return layer.eval()

    def _read_frame(self, config: Any) -> None:
        """Everything but the layers: weights from the source, buffers that no checkpoint holds from the config."""
        small = _causal_lm(_frame_config(config, self._source.config))
        for name, buffer in small.named_buffers():
            if ".layers." not in name:
                module, _, attribute = name.rpartition(".")
                self._model.get_submodule(module).register_buffer(attribute, buffer.to(self._device), persistent=False)
        names = {
            f"model.{name.removeprefix(self._prefix)}": name
            for name in self._source.tensors
            if name.startswith(self._prefix) and not name.startswith(f"{self._prefix}layers.")
        }
        head = "lm_head.weight"
        names[head] = head if head in self._source else names.get("model.embed_tokens.weight", head)
        self._load(self._model, names)
        self._model.eval()

    def _load(self, module: nn.Module, names: dict[str, str]) -> None:
        """Give ``module`` the source's tensors, ``names`` being parameter -> tensor; one stored twice is read once."""
        tensors = {
            name: self._source.read(name).to(self._device, self._dtype) for name in dict.fromkeys(names.values())
        }
        try:
            module.load_state_dict({key: tensors[name] for key, name in names.items()}, assign=True)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:300]
            raise ModelError(f"{self._source.path}: its tensors do not fit transformers' Gemma 4 ({reason})") from None
        module.requires_grad_(False)


def _text_config(path: Path) -> Any:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False).get_text_config()
    if getattr(config, "num_kv_shared_layers", 0):
        raise ModelError(f"{path}: layers that share keys and values cannot be run one by one")
    return config


def _causal_lm(config: Any) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(config)


def _frame_config(config: Any, raw: Mapping[str, Any]) -> Any:
    """The same but for size: one thin layer of each type, little vocabulary, no experts.

    Made from ``config.json``'s own text part, as a config derives what its layers need while it is made.
    """
    # The config insists on the last layer's type, and on special tokens inside the vocabulary.
    layer_types = [*dict.fromkeys(reversed(config.layer_types))][::-1]
    vocabulary = min(config.vocab_size, 1024)
    small = {"layer_types": layer_types, "num_hidden_layers": len(layer_types), "intermediate_size": 16}
    small |= {"vocab_size": vocabulary, "vocab_size_per_layer_input": vocabulary, "enable_moe_block": False}
    return type(config).from_dict({**raw.get("text_config", raw), **small})
