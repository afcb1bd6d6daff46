"""Loading the model in BF16 onto the asked device, whole."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from fourfold.errors import DeviceError

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel


def load_model(path: Path, config: Any, device: str) -> PreTrainedModel:
    """The model in BF16 in evaluation mode. ``auto`` spreads whole layers over all GPUs and nothing else.

    Raises :class:`DeviceError` when the GPUs do not hold the model: a part left on CPU or disk would be quantized
    from tensors that are not there.
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    loader = AutoModelForImageTextToText if "vision_config" in config else AutoModelForCausalLM
    placement = {} if device == "cpu" else {"device_map": "auto" if device == "auto" else {"": device}}
    try:
        # Eager attention on every backend, so that two toolchains see the same activations to the last bit.
        model = loader.from_pretrained(
            path, dtype=torch.bfloat16, local_files_only=True, attn_implementation="eager", trust_remote_code=False,
            use_safetensors=True, **placement,
        )  # fmt: skip
    except torch.OutOfMemoryError as error:
        raise DeviceError(f"{path}: does not fit on {device} ({error}); use --device auto or cpu") from error
    placed = set(getattr(model, "hf_device_map", {}).values())
    if device != "cpu" and placed & {"cpu", "disk"}:
        raise DeviceError(f"{path}: the GPUs hold only a part of the model; use more of them, or --device cpu")
    return model.eval()
