"""A Gemma 4 in two parts: the *front*, which makes a batch's embeddings, masks and rotary tables and in the end its
logits, and decoder layers, each without weights until they are read.

All modules are Transformers' own and are called as its text model calls them, so hidden states are those of the whole
model to the last bit, whether layers stay or come and go.

Shape letters: B rows, T tokens, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fourfold.checkpoint.index import CONFIG_FILE, read_json
from fourfold.engine import experts
from fourfold.engine.compiled import compile_modules
from fourfold.engine.streams import OwnStream, Purpose
from fourfold.engine.upload import Uploader
from fourfold.errors import ModelError
from fourfold.models.gemma4 import layer_of
from fourfold.models.gemma4_config import layer_overrides

if TYPE_CHECKING:
    from pathlib import Path

    from fourfold.checkpoint.reader import TensorReader
    from fourfold.models.gemma4 import LinearModule

#: Where media enter; a batch of text needs none of it.
_MEDIA = ("vision_tower", "embed_vision", "audio_tower", "embed_audio")
#: All that a batch of text has.
PLAIN = frozenset({"input_ids", "attention_mask"})
#: Arguments of a batch that carry media themselves; masks follow from the others.
_MEDIA_ARGUMENTS = ("pixel_values", "image_position_ids", "pixel_values_videos", "video_position_ids", "input_features")


class _Recorder(nn.Module):
    """Stands where a decoder layer stood, keeps what it is called with, and answers ``output`` or its input."""

    def __init__(self, layer_type: str) -> None:
        super().__init__()
        self.layer_type = layer_type
        self.arguments: dict[str, Any] = {}
        self.hidden: torch.Tensor | None = None
        self.output: torch.Tensor | None = None

    def forward(self, hidden_states: torch.Tensor, *_: object, **arguments: Any) -> torch.Tensor:
        """Keep and pass on."""
        self.hidden, self.arguments = hidden_states, arguments
        return hidden_states if self.output is None else self.output


class LayerwiseModel:
    """The model of a folder, its layers empty."""

    def __init__(
        self,
        path: Path,
        reader: TensorReader,
        tensors: tuple[str, ...],
        device: str,
        attention: str,
        *,
        dtype: torch.dtype = torch.bfloat16,
        fuse: bool = False,
    ) -> None:
        """``tensors`` are all names in the folder; ``attention`` is a Transformers attention implementation.

        ``dtype`` is what is computed in; constants stay those of the stored model (the embedding's scale is a BF16
        number, 55.5 for a width of 3072), since that is what a server multiplies with.
        ``fuse`` compiles norms and the elementwise part of experts, whose passes over memory take more time than the
        products; sums are then taken in another order, the same in every run, which can move a last bit.
        """
        from transformers import AutoConfig

        experts.register()
        self.device = torch.device(device)
        self._dtype = dtype
        # As it is stored, a model keeps its float32 buffers (rotary frequencies).
        self._place: dict[str, Any] = {"device": self.device} | ({} if dtype is torch.bfloat16 else {"dtype": dtype})
        self._fetching = OwnStream(Purpose.FETCH, self.device)
        self._reader, self._uploader, self._tensors = reader, Uploader(reader, self.device), tensors
        self._config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        self._raw_config = read_json(path / CONFIG_FILE)
        implementation = experts.FUSED if fuse else experts.IMPLEMENTATION
        self._settings = {
            "dtype": torch.bfloat16, "attn_implementation": attention, "experts_implementation": implementation,
        }  # fmt: skip
        text = self._config.get_text_config()
        if text.hidden_size_per_layer_input or text.num_kv_shared_layers:
            raise ModelError(
                f"{path}: per-layer inputs and shared keys are not those of a mixture-of-experts Gemma 4; "
                "use --quantizer modelopt"
            )
        self.hidden_size: int = text.hidden_size
        self.layer_types: tuple[str, ...] = tuple(text.layer_types)
        with torch.device("meta"):
            whole = self._loader().from_config(self._config, **self._settings)
        self._class: Any = type(whole)
        self.layers = list(whole.get_decoder().layers)
        if fuse:
            norm = type(self.layers[0].input_layernorm)
            compile_modules(module for layer in self.layers for module in layer.modules() if isinstance(module, norm))
        self._front: Any = None
        self._front_has_media = False
        self._recorders: list[_Recorder] = []
        self._plain: dict[tuple[int, int], dict[str, dict[str, Any]]] = {}

    def _loader(self) -> Any:
        from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

        return AutoModelForImageTextToText if hasattr(self._config, "text_config") else AutoModelForCausalLM

    def load_layer(self, index: int, tensors: Mapping[str, torch.Tensor] | None = None) -> nn.Module:
        """Give a layer its weights, fetched here or ``tensors`` of :meth:`fetch_layer`, and return it."""
        layer: nn.Module = self.layers[index]
        tensors = self.fetch_layer(index) if tensors is None else tensors
        missing, unexpected = layer.load_state_dict(tensors, strict=False, assign=True)
        if missing or unexpected:
            raise ModelError(f"layer {index}: {[*missing, *unexpected][0]} is missing from the checkpoint, or strange")
        return layer.eval().requires_grad_(False)

    def unload_layer(self, index: int) -> None:
        """Take a layer's weights away."""
        self.layers[index].to("meta")

    def fetch_layer(self, index: int) -> dict[str, torch.Tensor]:
        """A layer's tensors on the device, by name inside the layer, in the dtype that is computed in; may run in
        another thread.
        """
        with self._fetching.work():
            return {
                name.split(f"layers.{index}.", 1)[-1]: self._uploader.read(name).to(self.device, self._dtype)
                for name in self._names(index)
            }

    def stores_otherwise(self, index: int) -> bool:
        """Whether a layer is stored in another dtype than is computed in, such as float32."""
        return any(self._reader.form(name)[1] is not self._dtype for name in self._names(index))

    def stored(self, linear: LinearModule) -> torch.Tensor:
        """A linear's weight [O, K] as it is stored, read again, on the CPU."""
        return self._reader.module(linear)

    def _names(self, index: int) -> list[str]:
        return [name for name in self._tensors if layer_of(name) == index]

    def largest_layer_bytes(self) -> int:
        """Bytes of the largest layer in BF16."""
        numbers: int = max(sum(p.numel() for p in layer.parameters()) for layer in self.layers)
        return numbers * torch.bfloat16.itemsize

    def embed(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The hidden states [B, T, H] that enter layer 0."""
        self._run_front(batch)
        assert self._recorders[0].hidden is not None  # the front has just been run
        return self._recorders[0].hidden

    def logits(self, batch: Mapping[str, torch.Tensor], hidden: torch.Tensor) -> torch.Tensor:
        """float32 [B, T, V] of the last layer's output ``hidden`` [B, T, H], through norm, head and soft cap."""
        self._front_for(batch)
        last = self._recorders[-1]
        last.output = hidden
        try:
            logits: torch.Tensor = self._front(**self._on_device(batch), use_cache=False).logits
        finally:
            last.output = None
        return logits.float()

    def layer_arguments(self, batch: Mapping[str, torch.Tensor], index: int) -> dict[str, Any]:
        """What layer ``index`` is called with beside hidden states: masks, positions, rotary tables.

        Batches of text without padding share them by shape; for others they are made anew, as keeping them all
        would take more room than the hidden states.
        """
        mask = batch["attention_mask"]
        plain = set(batch) == PLAIN and bool(mask.all())
        key = (mask.shape[0], mask.shape[1])
        if not plain or key not in self._plain:
            # Media are not even read: they are in the hidden states already.
            self._run_front({name: batch[name] for name in batch if name not in _MEDIA_ARGUMENTS})
            arguments = {recorder.layer_type: recorder.arguments for recorder in self._recorders}
            if not plain:
                return _fresh(arguments[self.layer_types[index]])
            self._plain[key] = arguments
        return _fresh(self._plain[key][self.layer_types[index]])

    def _run_front(self, batch: Mapping[str, torch.Tensor]) -> None:
        self._front_for(batch)
        self._front.base_model(**self._on_device(batch), use_cache=False)

    def _front_for(self, batch: Mapping[str, torch.Tensor]) -> None:
        """Make the front, or make it anew for the first batch with media."""
        media = any(name in batch for name in _MEDIA_ARGUMENTS)
        if self._front is None or (media and not self._front_has_media):
            self._front = self._make_front(media=media)

    def _on_device(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if self.device.type == "cpu":
            return dict(batch)
        # From other memory than page-locked a copy waits for all kernels before it.
        return {name: value.pin_memory().to(self.device, non_blocking=True) for name, value in batch.items()}

    def _make_front(self, *, media: bool) -> nn.Module:
        """The model with one recorder a kind of layer in place of its layers.

        It is made by ``from_pretrained`` with layers of next to no size, since that alone fills the buffers that no
        checkpoint holds (rotary frequencies, the embedding's scale).
        """
        from transformers.utils import logging

        config = _small_config(self._raw_config, type(self._config), self.layer_types, media=media)
        names = [
            name
            for name in self._tensors
            if layer_of(name) is None and (media or not any(f".{part}." in name for part in _MEDIA))
        ]
        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()  # the small layers' weights are missing, as they should be
        try:
            model = self._class.from_pretrained(
                None,
                config=config,
                state_dict={name: self._reader.read(name) for name in names},
                trust_remote_code=False,
                **self._settings,
            )
        finally:
            logging.set_verbosity(verbosity)
        self._recorders = [_Recorder(layer_type) for layer_type in dict.fromkeys(self.layer_types)]
        model.get_decoder().layers = nn.ModuleList(self._recorders)
        self._front_has_media = media
        return model.to(**self._place).eval().requires_grad_(False)  # type: ignore[no-any-return]


def _small_config(raw: Mapping[str, Any], kind: Any, layer_types: tuple[str, ...], *, media: bool) -> Any:
    """``config.json`` with one layer a type and next to nothing in it; a config derives from layers as it is made."""
    types = list(dict.fromkeys(layer_types))
    text = raw.get("text_config", raw)
    overrides = {str(new): layer_overrides(text, layer_types.index(one)) for new, one in enumerate(types)}
    small = {"layer_types": types, "num_hidden_layers": len(types), "num_experts": 1, "top_k_experts": 1}
    small |= {"moe_intermediate_size": 16, "intermediate_size": 16}
    small |= {"per_layer_config": overrides} if text.get("per_layer_config") is not None else {}
    if "text_config" not in raw:
        return kind.from_dict({**raw, **small})
    without = {} if media else dict.fromkeys(("vision_config", "audio_config"))
    return kind.from_dict({**raw, **without, "text_config": {**raw["text_config"], **small}})


def _fresh(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments with a store of shared keys of their own: a layer writes into it, and no other reads it here."""
    stores = {"shared_kv_states": type(arguments["shared_kv_states"])()} if "shared_kv_states" in arguments else {}
    return dict(arguments) | stores
