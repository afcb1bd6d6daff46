"""Loading the model in BF16 onto the asked device, and saying clearly when that device is not there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from fourfold.errors import ConfigError, DeviceError

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel


def require_device(device: str) -> None:
    """:class:`DeviceError` when ``device`` (``cpu``, ``cuda``, ``cuda:N``, ``auto``) is absent here."""
    if device == "cpu":
        return
    kind, _, index = device.partition(":")
    if kind not in ("cuda", "auto") or (index and not index.isdecimal()) or (kind == "auto" and index):
        raise ConfigError(f"unknown device {device!r}; use cpu, cuda, cuda:N or auto")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        raise DeviceError(f"device {device} was asked for, and there is no CUDA device here; use --device cpu")
    if index and int(index) >= count:
        raise DeviceError(
            f"device {device} was asked for, and there are {count} CUDA devices (cuda:0 to cuda:{count - 1})"
        )


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
            path, dtype=torch.bfloat16, local_files_only=True, attn_implementation="eager", **placement
        )
    except torch.OutOfMemoryError as error:
        raise DeviceError(f"{path}: does not fit on {device} ({error}); use --device auto or cpu") from error
    placed = set(getattr(model, "hf_device_map", {}).values())
    if device != "cpu" and placed & {"cpu", "disk"}:
        raise DeviceError(f"{path}: the GPUs hold only a part of the model; use more of them, or --device cpu")
    return model.eval()  # type: ignore[no-any-return,no-untyped-call]
