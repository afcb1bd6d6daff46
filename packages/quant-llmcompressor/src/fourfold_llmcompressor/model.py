"""Loading the model for calibration, and what Gemma 4 needs so that llm-compressor can run it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, PreTrainedModel

from fourfold.errors import DeviceError, ModelError


def load_model(path: Path, device: str) -> PreTrainedModel:
    """The model in its stored dtype on ``device`` (``cpu``, ``cuda``, ``cuda:N`` or ``auto``), in eval mode.

    Attention is eager: llm-compressor forces it for calibration anyway, and activations should not depend on
    who runs.
    """
    config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    architecture = next(iter(config.architectures or ()), "none")
    model_class = getattr(transformers, architecture, None)
    # The name comes out of a file: it may be that of anything the library holds.
    if not (isinstance(model_class, type) and issubclass(model_class, PreTrainedModel)):
        raise ModelError(f"{path / 'config.json'}: transformers {transformers.__version__} has no {architecture}")
    placement: Mapping[str, Any] = {}
    if device != "cpu":
        if not torch.cuda.is_available():
            raise DeviceError(f"device {device!r} was asked for, and torch sees no GPU; choose --device cpu")
        if device.startswith("cuda:"):
            torch.cuda.set_device(torch.device(device))
        placement = {"device_map": "auto" if device == "auto" else {"": device}}
    loader: Any = model_class
    model: PreTrainedModel = loader.from_pretrained(
        path, config=config, dtype="auto", attn_implementation="eager", local_files_only=True,
        trust_remote_code=False, use_safetensors=True, **placement,
    )  # fmt: skip
    return model.eval()


@contextlib.contextmanager
def per_layer_config_readable(model: PreTrainedModel) -> Iterator[None]:
    """Let llm-compressor read ``num_key_value_heads`` from the whole config while it attaches KV scales.

    Gemma 4's full-attention layers have their own head counts, so transformers refuses the global ones. The
    scales are one number a layer, and llm-compressor uses the counts only for scales per head.
    """
    config = model.config.get_text_config()
    before = config.allow_global_per_layer_attribute_access
    config.allow_global_per_layer_attribute_access = True
    try:
        yield
    finally:
        config.allow_global_per_layer_attribute_access = before


@contextlib.contextmanager
def shared_kv_replayable(model: PreTrainedModel) -> Iterator[None]:
    """Give a decoder layer an empty ``shared_kv_states`` when it is called without.

    AutoRound replays a layer with the tensors it recorded and drops this dict, into which Gemma 4's attention
    writes. Where layers read it (``num_kv_shared_layers``), a replay cannot be right and is refused.
    """
    text = model.config.get_text_config()
    if getattr(text, "num_kv_shared_layers", 0):
        raise ModelError(
            f"autoround replays one layer at a time, but {text.num_kv_shared_layers} layers of this model "
            "read the keys and values of another; choose another algorithm"
        )

    def supply(_module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if kwargs.get("shared_kv_states") is None:
            kwargs = kwargs | {"shared_kv_states": {}}
        return args, kwargs

    handles = [layer.register_forward_pre_hook(supply, with_kwargs=True) for layer in decoder_layers(model)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def decoder_layers(model: PreTrainedModel) -> list[torch.nn.Module]:
    """The text decoder's layers, in order."""
    return list(model.get_decoder().layers)
