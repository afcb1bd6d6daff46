"""Frozen configuration: what is asked for, as data that can be printed, hashed and sent to another process.

Unknown keys are refused and every message carries the key path (``recipe.scheme: ...``).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from enum import StrEnum
from fnmatch import translate
from functools import cache
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from fourfold.checkpoint.untrusted import printable
from fourfold.errors import ConfigError

#: More wrong keys than this are counted, not listed.
_MAX_TOLD = 100


class Config(BaseModel):
    """Base of every configuration and record: frozen, unknown keys forbidden."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    @classmethod
    def parse(cls, data: Any, *, where: str) -> Self:
        """Validate ``data``; a :class:`ConfigError` names each wrong key below ``where`` and what was expected."""
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise ConfigError(describe_validation_error(error, where)) from None

    def canonical_json(self) -> str:
        """The one spelling of this record: sorted keys, no spaces. Equal records give equal text."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))

    def sha256(self) -> str:
        """Hex digest of :meth:`canonical_json`."""
        return hashlib.sha256(self.canonical_json().encode()).hexdigest()


class Options(Config):
    """Base of the options a backend's entry accepts. A backend without options uses this class itself."""


class Scheme(StrEnum):
    """What is stored in NVFP4: weights and activations, or weights alone."""

    W4A4 = "W4A4"
    W4A16 = "W4A16"


#: What a checkpoint is called whose modules are not all of one scheme.
MIXED = f"{Scheme.W4A4} + {Scheme.W4A16}"


class KVCache(StrEnum):
    """How the checkpoint asks the server to store keys and values."""

    NONE = "none"
    FP8 = "fp8"


class RareExpertRule(StrEnum):
    """What happens to an expert that saw fewer calibration tokens than asked for.

    ``layer-max``: its input scale becomes the largest of those of its layer's experts that saw enough, and the manifest
    names it. Its own few tokens do not count, even where their scale is larger.
    ``error``: the run stops.
    """

    LAYER_MAX = "layer-max"
    ERROR = "error"


#: Named exclusions; a preset is only a shorthand for patterns.
TARGET_PRESETS: dict[str, tuple[str, ...]] = {
    "all-linear": (),
    "experts-only": ("*.self_attn.*", "*.mlp.*"),
    "attention-bf16": ("*.self_attn.*",),
    "dense-mlp-bf16": ("*.mlp.*",),
}


class Recipe(Config):
    """What is quantized, and how it is stored; the algorithm is the quantizer's option.

    Patterns are shell-style (``*``, ``?``, ``[...]``), match a module's whole name
    (``model.language_model.layers.0.experts.5.gate_proj``) and must each match something. ``weights_only`` are the
    targets of a W4A4 recipe whose own inputs stay in BF16: :meth:`scheme_of` says what a module gets.
    """

    scheme: Scheme = Scheme.W4A4
    targets: Literal["all-linear", "experts-only", "attention-bf16", "dense-mlp-bf16"] = "all-linear"
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    #: Bounded, as a stranger's manifest has every module matched against them.
    weights_only: tuple[Annotated[str, StringConstraints(max_length=256)], ...] = Field(default=(), max_length=256)
    kv_cache: KVCache = KVCache.NONE
    rare_experts: RareExpertRule = RareExpertRule.LAYER_MAX
    #: An expert with fewer calibration tokens than this is rare.
    min_expert_tokens: int = Field(default=1, ge=1)

    @property
    def all_excludes(self) -> tuple[str, ...]:
        """The preset's patterns and the free ones."""
        return TARGET_PRESETS[self.targets] + self.exclude

    def scheme_of(self, module: str) -> Scheme:
        """The scheme of one target, by its name."""
        return Scheme.W4A16 if self.weights_only and _any_of(self.weights_only)(module) else self.scheme

    @property
    def scheme_text(self) -> str:
        """``W4A4``, ``W4A16``, or for a recipe of both :data:`MIXED`."""
        return MIXED if self.weights_only else str(self.scheme)


@cache
def _any_of(patterns: tuple[str, ...]) -> Callable[[str], re.Match[str] | None]:
    """Whether one of the shell-style patterns matches a whole name."""
    return re.compile("|".join(map(translate, patterns))).match


def describe_validation_error(error: ValidationError, where: str) -> str:
    """One line: every wrong key with its path below ``where`` and what was expected there."""
    if error.error_count() > _MAX_TOLD:
        return f"{where or 'the record'}: {error.error_count()} wrong keys; it is something else altogether"
    parts = []
    for item in error.errors():
        path = ".".join([where, *(str(p) for p in item["loc"])]) if where else ".".join(map(str, item["loc"]))
        if item["type"] == "extra_forbidden":
            parts.append(f"{path}: unknown key")
        else:
            given = "" if item["type"] == "missing" else f" (given: {printable(repr(item['input']))})"
            message = item["msg"].removeprefix("Value error, ").replace("Input should be", "should be")
            parts.append(f"{path}: {message}{given}")
    return "; ".join(parts)


def parse_pairs(pairs: list[str]) -> dict[str, object]:
    """``KEY=VALUE`` options; a value is JSON where it parses as such (numbers, true, false) and text otherwise."""
    parsed: dict[str, object] = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator or not key:
            raise ConfigError(f"option {pair!r} is not of the form KEY=VALUE")
        if key in parsed:
            raise ConfigError(f"option {key} is given twice; which one is meant? Leave one out")
        try:
            parsed[key] = json.loads(value)
        except json.JSONDecodeError:
            parsed[key] = value
    return parsed
