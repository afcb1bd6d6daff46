"""The plugin's environment variables. vLLM hands its environment to every process it starts, so all see the same.

=========================  ====================================================================================
``FOURFOLD_EMULATION``     ``auto`` (default): on CPUs only; ``on``: on any device; ``off``
``FOURFOLD_ACTIVATIONS``   ``nvfp4`` (default): as the checkpoint says; ``none``: activations stay as they are (W4A16)
``FOURFOLD_INPUT_SCALE``   of experts, as the GPU backends take them: ``merged`` (default; FlashInfer, TRT-LLM: the
                           layer's largest), ``per-expert`` (CUTLASS, B12X), ``ignored`` (Marlin, Humming: W4A16)
``FOURFOLD_DECODE``        ``once`` (default): weights are decoded when loaded, 2 bytes each in BF16;
                           ``lazy``: whenever they are used, 0.56 bytes each
=========================  ====================================================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from fourfold.errors import ConfigError


class Emulation(StrEnum):
    """Where the plugin computes."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"


class Activations(StrEnum):
    """What becomes of activations before a product."""

    NVFP4 = "nvfp4"
    NONE = "none"


class InputScale(StrEnum):
    """Which input global scale an expert's activations get."""

    PER_EXPERT = "per-expert"
    MERGED = "merged"
    IGNORED = "ignored"


class Decode(StrEnum):
    """When weights are decoded."""

    ONCE = "once"
    LAZY = "lazy"


_EMULATION, _ACTIVATIONS = "FOURFOLD_EMULATION", "FOURFOLD_ACTIVATIONS"
_INPUT_SCALE, _DECODE = "FOURFOLD_INPUT_SCALE", "FOURFOLD_DECODE"
_DEVICES = ("cpu", "cuda")

ChoiceT = TypeVar("ChoiceT", bound=StrEnum)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the variables say. ``given`` are the names of those that were set."""

    emulation: Emulation = Emulation.AUTO
    activations: Activations = Activations.NVFP4
    input_scale: InputScale = InputScale.MERGED
    decode: Decode = Decode.ONCE
    given: tuple[str, ...] = ()

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Settings:
        """Read the four variables; a :class:`ConfigError` names one that cannot be meant, or two that contradict."""
        settings = cls(
            emulation=_choice(environment, _EMULATION, Emulation.AUTO),
            activations=_choice(environment, _ACTIVATIONS, Activations.NVFP4),
            input_scale=_choice(environment, _INPUT_SCALE, InputScale.MERGED),
            decode=_choice(environment, _DECODE, Decode.ONCE),
            given=tuple(name for name in (_ACTIVATIONS, _INPUT_SCALE, _DECODE) if name in environment),
        )
        quantized = settings.activations is Activations.NVFP4
        scaled = settings.input_scale is not InputScale.IGNORED
        if {_ACTIVATIONS, _INPUT_SCALE} <= set(settings.given) and quantized != scaled:
            raise ConfigError(
                f"{_ACTIVATIONS}={settings.activations} contradicts {_INPUT_SCALE}={settings.input_scale}: input "
                "scales are for quantized activations, and ignoring them leaves activations as they are; set only one"
            )
        return settings

    @property
    def quantize_activations(self) -> bool:
        """Whether activations are rounded to NVFP4 where the checkpoint asks for it."""
        return self.activations is Activations.NVFP4 and self.input_scale is not InputScale.IGNORED

    def applies_to(self, device_type: str) -> bool:
        """Whether the plugin computes on a device of that type (``cpu``, ``cuda``).

        Raises :class:`ConfigError` when asked to on another device, or when a setting would be without effect.
        """
        if self.emulation is Emulation.ON and device_type not in _DEVICES:
            raise ConfigError(f"{_EMULATION}=on: the emulation runs on {' or '.join(_DEVICES)}, not on {device_type!r}")
        active = self.emulation is Emulation.ON or (self.emulation is Emulation.AUTO and device_type == "cpu")
        if not active and self.given:
            raise ConfigError(
                f"{', '.join(self.given)} would have no effect: the emulation is off on {device_type!r} "
                f"({_EMULATION}={self.emulation}); set {_EMULATION}=on"
            )
        return active

    @property
    def graph_key(self) -> str:
        """All that changes the computation: what a cache of compiled graphs must tell apart."""
        return f"activations={self.quantize_activations} input_scale={self.input_scale} decode={self.decode}"


def _choice(environment: Mapping[str, str], name: str, default: ChoiceT) -> ChoiceT:
    """The variable's value as a member of ``default``'s enumeration."""
    text = environment.get(name)
    if text is None:
        return default
    kind = type(default)
    try:
        return kind(text)
    except ValueError:
        raise ConfigError(f"{name}={text!r}: should be one of {', '.join(kind)}") from None
