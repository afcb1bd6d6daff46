"""``fourfold plan``: every recipe's bytes, tokens and speed on a GPU, and the best mix for a size."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, Literal

from pydantic import Field, FiniteFloat

from fourfold.config import TARGET_PRESETS, Config, KVCache, Scheme
from fourfold.errors import ConfigError
from fourfold.hardware import Gpu, gpu_by_name
from fourfold.models.gemma4 import ModuleKind
from fourfold.sensitivity.report import read_sensitivity
from fourfold.sizing.mixed import Mix, Unit, best_mix, units_of
from fourfold.sizing.roofline import bytes_per_token, tokens_per_second
from fourfold.sizing.shapes import ModelShape, read_shape
from fourfold.sizing.sizes import SCALE_BYTES, Choose, KVCost, checkpoint_bytes, kv_cost

SCHEMA_VERSION: Final = 1
#: What a server takes beside weights and cache: CUDA context, activations, graphs. An assumption, not a measurement.
DEFAULT_RESERVE = 2 * 10**9
_SIZES = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_PARENTS = {ModuleKind.ATTENTION: "self_attn", ModuleKind.DENSE_MLP: "mlp", ModuleKind.EXPERT: "experts"}
_BF16_ROLES = {
    "all-linear": frozenset[ModuleKind](),
    "experts-only": frozenset({ModuleKind.ATTENTION, ModuleKind.DENSE_MLP}),
    "attention-bf16": frozenset({ModuleKind.ATTENTION}),
    "dense-mlp-bf16": frozenset({ModuleKind.DENSE_MLP}),
}


class PlanConfig(Config):
    """What to plan for. ``fit`` is the checkpoint's size in bytes; without it, what the GPU leaves for weights.

    ``memory_share`` is the part of the GPU's memory the server may use, ``reserve`` what of that is neither weights nor
    cache. ``context`` is the sequence the cache must hold when a mix is sought, and the one speed is predicted at.
    """

    model: str
    gpu: str | None = None
    fit: int | None = Field(default=None, ge=1)
    sensitivity: str | None = None
    kv_cache: KVCache = KVCache.NONE
    context: int = Field(default=1024, ge=1)
    memory_share: float = Field(default=0.9, gt=0, le=1)
    reserve: int = Field(default=DEFAULT_RESERVE, ge=0)


class RecipeRow(Config):
    """One recipe. What needs a GPU is None without one.

    Attributes:
        bytes: of tensors, on disk and in the server's memory alike.
        fits: the checkpoint is within ``fit``, or within what the GPU leaves beside one sequence of ``context``.
        kv_tokens: the longest one sequence the cache can hold, up to the model's own limit.
        sequences: how many sequences of ``context`` fit at once.
        error: summed over units of the sensitivity report; None without one.
    """

    recipe: str
    scheme: Scheme | None
    bytes: int
    bytes_per_token: FiniteFloat
    fits: bool | None
    kv_tokens: int | None
    sequences: int | None
    tokens_per_second: FiniteFloat | None
    error: FiniteFloat | None


class MixRow(Config):
    """The best mix: its row, what stays BF16, and the patterns that ``fourfold quantize --exclude`` takes for it."""

    row: RecipeRow
    bf16: tuple[str, ...]
    exclude: tuple[str, ...]


class PlanReport(Config):
    """The result of :func:`make_plan`. ``room`` is what weights may take."""

    schema_version: Literal[1] = SCHEMA_VERSION
    config: PlanConfig
    gpu: Gpu | None
    num_parameters: int
    active_parameters: int
    room: int | None
    error_is: str | None
    recipes: tuple[RecipeRow, ...]
    mix: MixRow | None
    mix_absent: str | None


def parse_size(text: str) -> int:
    """Bytes of ``17GB`` (10^9), ``16 GiB`` (2^30) or a plain number; :class:`ConfigError` for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?i?B?)\s*", text, flags=re.IGNORECASE)
    unit = match[2].upper() if match else ""
    if match is None or unit not in _SIZES or float(match[1]) <= 0:
        raise ConfigError(f"fit: {text!r} is no size; write it like 17GB or 16GiB")
    return int(float(match[1]) * _SIZES[unit])


def make_plan(config: PlanConfig) -> PlanReport:
    """Plan from ``config.json`` and the GPU's published figures alone.

    Raises :class:`ConfigError` where neither GPU nor size is given, and for a report that is of another model.
    """
    if config.gpu is None and config.fit is None:
        raise ConfigError("plan: give --gpu NAME, --fit SIZE, or both")
    shape = read_shape(config.model)
    gpu = gpu_by_name(config.gpu) if config.gpu else None
    cost = kv_cost(shape, 1 if config.kv_cache is KVCache.FP8 else 2)
    room = config.fit
    if room is None and gpu is not None:
        room = _usable(config, gpu) - cost.bytes(config.context)
    sheet = _Sheet(config, shape, gpu, cost, room)
    rows = [sheet.row("BF16", None, lambda layer, kind: False)]
    rows += [
        sheet.row(name, Scheme.W4A4, lambda layer, kind, kept=_BF16_ROLES[name]: kind not in kept)  # type: ignore[misc]
        for name in TARGET_PRESETS
    ]
    rows.append(sheet.row("all-linear", Scheme.W4A16, lambda layer, kind: True))
    mix, absent = sheet.mix()
    return PlanReport(
        config=config,
        gpu=gpu,
        num_parameters=shape.num_parameters,
        active_parameters=shape.active_parameters,
        room=room,
        error_is=sheet.error_is,
        recipes=tuple(rows),
        mix=mix,
        mix_absent=absent,
    )


def _usable(config: PlanConfig, gpu: Gpu) -> int:
    return int(gpu.memory_bytes * config.memory_share) - config.reserve


class _Sheet:
    """Rows of one plan."""

    def __init__(self, config: PlanConfig, shape: ModelShape, gpu: Gpu | None, cost: KVCost, room: int | None) -> None:
        self._config, self._shape, self._gpu, self._cost, self._room = config, shape, gpu, cost, room
        self._units: tuple[Unit, ...] = ()
        self.error_is: str | None = None
        if config.sensitivity is not None:
            self._units, self.error_is = units_of(shape, read_sensitivity(Path(config.sensitivity)))

    def row(self, name: str, scheme: Scheme | None, chosen: Choose) -> RecipeRow:
        """One recipe's figures."""
        size = checkpoint_bytes(self._shape, chosen)
        if scheme is Scheme.W4A16:
            # no input scale in any linear
            size -= SCALE_BYTES // 2 * sum(layer.copies(kind) for layer in self._shape.layers for kind in ModuleKind)
        gpu, config = self._gpu, self._config
        kv_bytes = 1 if config.kv_cache is KVCache.FP8 else 2
        left = None if gpu is None else max(0, _usable(config, gpu) - size)
        return RecipeRow(
            recipe=name,
            scheme=scheme,
            bytes=size,
            bytes_per_token=bytes_per_token(self._shape, chosen, context=config.context, kv_bytes=kv_bytes),
            fits=None if self._room is None else size <= self._room,
            kv_tokens=None if left is None else min(self._cost.tokens_in(left), self._shape.max_positions),
            sequences=None if left is None else left // self._cost.bytes(config.context),
            tokens_per_second=None
            if gpu is None
            else tokens_per_second(self._shape, chosen, gpu.bandwidth, context=config.context, kv_bytes=kv_bytes),
            error=self._error(chosen) if scheme is not Scheme.W4A16 else None,
        )

    def _error(self, chosen: Choose) -> float | None:
        if self.error_is is None:
            return None
        return sum(unit.error for unit in self._units if chosen(unit.layer, unit.kind))

    def mix(self) -> tuple[MixRow | None, str | None]:
        """The best mix for the room there is, or why there is none."""
        if not self._units:
            return None, "no sensitivity report was given (--sensitivity), so no mix is better founded than another"
        assert self._room is not None  # make_plan asks for a GPU or a size
        needed = checkpoint_bytes(self._shape, lambda layer, kind: False) - self._room
        found = best_mix(self._units, max(0, needed))
        if found is None:
            least = checkpoint_bytes(self._shape, lambda layer, kind: True)
            return (
                None,
                f"even with every linear in NVFP4 the checkpoint takes {least:,} bytes; {self._room:,} are left",
            )
        bf16 = [unit for unit in self._units if not found.chooses(unit.layer, unit.kind)]
        names = tuple(f"layer {unit.layer}, {unit.kind}" for unit in bf16)
        return MixRow(row=self.row("mix", Scheme.W4A4, found.chooses), bf16=names, exclude=self._patterns(found)), None

    def _patterns(self, mix: Mix) -> tuple[str, ...]:
        """Patterns for ``--exclude``: a role's name where all its layers stay, else one a layer."""
        layers = [layer.index for layer in self._shape.layers]
        patterns: list[str] = []
        for kind, parent in _PARENTS.items():
            kept = [index for index in layers if not mix.chooses(index, kind)]
            whole = kept == layers
            patterns += [f"*.{parent}.*"] if whole else [f"*.layers.{index}.{parent}.*" for index in kept]
        return tuple(patterns)
