"""Gemma 4 mixture-of-experts: names, shapes, what a server fuses, and what stays BF16. Nothing else knows them.

A text layer holds ``self_attn.{q,k,v,o}_proj`` (no ``v_proj`` where ``attention_k_eq_v`` holds: K is reused as
V), a dense ``mlp.{gate,up,down}_proj``, and beside it the experts as two 3-D parameters without ``.weight``:
``experts.gate_up_proj`` [E, 2I, H], gate rows first, and ``experts.down_proj`` [E, H, I].

Source: transformers ``models/gemma4/modeling_gemma4.py``; what a server fuses: vLLM ``models/gemma4.py``.
Shape letters: E experts, H hidden, I expert width, O out features, K in features.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NewType

from fourfold.checkpoint.index import TensorFolder
from fourfold.checkpoint.untrusted import printable
from fourfold.errors import ModelError

if TYPE_CHECKING:
    import torch

#: A module in the un-fused model, such as ``model.language_model.layers.0.experts.5.gate_proj``.
ModuleName = NewType("ModuleName", str)

GATE_UP = "experts.gate_up_proj"
DOWN = "experts.down_proj"
EXPERT_PROJECTIONS = ("gate_proj", "up_proj", "down_proj")

#: More than any model has; a file that says more would only cost memory.
MAX_LAYERS, MAX_EXPERTS = 1024, 4096

_LAYER = re.compile(r"^(?P<prefix>model\.(?:language_model\.)?)layers\.(?P<layer>\d+)\.(?P<rest>.+)$")
_DENSE = re.compile(r"^(?:self_attn\.[qkvo]_proj|mlp\.(?:gate|up|down)_proj)\.weight$")
_EXPERT = re.compile(r"^(?P<parent>.+\.experts)\.(?P<expert>\d+)\.(?P<projection>gate_proj|up_proj|down_proj)$")
_ADAPTER = "adapter_config.json"
#: Numbers of ``text_config`` that names and shapes follow from, and their limits.
_NUMBERS = {
    "num_hidden_layers": MAX_LAYERS, "num_experts": MAX_EXPERTS, "top_k_experts": MAX_EXPERTS,
    "moe_intermediate_size": 2**20, "hidden_size": 2**20,
}  # fmt: skip


class ModuleKind(StrEnum):
    """The role of a quantizable linear, for tables and patterns."""

    EXPERT = "expert"
    ATTENTION = "attention"
    DENSE_MLP = "dense-mlp"


@dataclass(frozen=True)
class LinearModule:
    """A linear of the un-fused model and where its weight [O, K] stands in the source checkpoint.

    ``slices`` selects it inside ``tensor``: empty for a 2-D weight, (expert, rows) for a fused one.
    """

    name: ModuleName
    kind: ModuleKind
    layer: int
    expert: int | None
    projection: str
    shape: tuple[int, int]
    tensor: str
    slices: tuple[int | slice, ...]
    scale_group: str

    @property
    def numel(self) -> int:
        """Number of weights."""
        return self.shape[0] * self.shape[1]

    def read(self, source: TensorFolder) -> torch.Tensor:
        """The weight [O, K] in its stored dtype, read alone."""
        return source.read(self.tensor, self.slices or None)


@dataclass(frozen=True)
class Gemma4Moe:
    """What a Gemma 4 MoE checkpoint holds.

    ``linears`` are all quantizable modules by name, in layer order. ``kept`` are the tensors no scheme
    touches: router, vision tower, embeddings, norms, ``layer_scalar``.
    """

    num_layers: int
    num_experts: int
    experts_per_token: int
    linears: Mapping[ModuleName, LinearModule]
    kept: tuple[str, ...]
    num_parameters: int
    num_fused_parameters: int

    @property
    def fused_expert_share(self) -> float:
        """Share of all parameters that stands in fused experts."""
        return self.num_fused_parameters / self.num_parameters

    def experts_module(self, layer: int) -> str:
        """Name of the module that holds a layer's experts."""
        first = next(m for m in self.linears.values() if m.layer == layer and m.expert is not None)
        return first.tensor.rsplit(".", 1)[0]


def read_gemma4(source: TensorFolder) -> Gemma4Moe:
    """Read config and index; :class:`ModelError` when this is no unquantized Gemma 4 MoE we know in full."""
    text = _text_config(source)
    num_layers, num_experts = text["num_hidden_layers"], text["num_experts"]
    linears: dict[ModuleName, LinearModule] = {}
    kept: list[str] = []
    strangers: list[str] = []
    for entry in source.tensors.values():
        match = _LAYER.match(entry.name)
        rest = match["rest"] if match else ""
        if match and rest in (GATE_UP, DOWN):
            for module in _expert_modules(entry.name, entry.shape, match, text, source):
                linears[module.name] = module
        elif match and _DENSE.match(rest):
            if len(entry.shape) != 2:
                raise ModelError(f"{source.path}: {entry.name} has shape {list(entry.shape)}; a linear's is [out, in]")
            module = _dense_module(entry.name, entry.shape, match)
            linears[module.name] = module
        else:
            if len(entry.shape) == 3 and num_experts in entry.shape:
                strangers.append(entry.name)
            kept.append(entry.name)
    total = sum(entry.numel for entry in source)
    _refuse_strangers(source, strangers, total)
    _require_all_layers(source, linears, num_layers)
    fused = sum(m.numel for m in linears.values() if m.kind is ModuleKind.EXPERT)
    ordered = sorted(linears.values(), key=lambda m: (m.layer, m.kind, -1 if m.expert is None else m.expert, m.name))
    return Gemma4Moe(
        num_layers=num_layers,
        num_experts=num_experts,
        experts_per_token=text["top_k_experts"],
        linears={m.name: m for m in ordered},
        kept=tuple(sorted(kept)),
        num_parameters=total,
        num_fused_parameters=fused,
    )


def _text_config(source: TensorFolder) -> Mapping[str, Any]:
    config = source.config
    text = config.get("text_config", config)
    if not str(config.get("model_type", "")).startswith("gemma4") or not isinstance(text, Mapping):
        kind = printable(repr(config.get("model_type")), 80)
        raise ModelError(f"{source.path}: not a Gemma 4 model (model_type {kind})")
    if (source.path / _ADAPTER).exists():
        raise ModelError(f"{source.path}: {_ADAPTER} makes loaders load another model in place of this one; remove it")
    if not text.get("enable_moe_block") or not text.get("num_experts"):
        raise ModelError(f"{source.path}: a dense Gemma 4 model; Fourfold quantizes the mixture-of-experts ones")
    if "quantization_config" in config:
        section = config["quantization_config"]
        method = section.get("quant_method", "unknown") if isinstance(section, Mapping) else "unknown"
        method = printable(str(method), 80)
        raise ModelError(f"{source.path}: already quantized ({method}); give the unquantized model")
    for key, limit in _NUMBERS.items():
        number = text.get(key)
        if type(number) is not int:
            raise ModelError(f"{source.path / 'config.json'}: text_config.{key} is missing, or no number")
        if not 0 < number <= limit:
            raise ModelError(f"{source.path / 'config.json'}: text_config.{key} is {number}; known are 1 to {limit}")
    return text


def _expert_modules(
    tensor: str, shape: tuple[int, ...], match: re.Match[str], text: Mapping[str, Any], source: TensorFolder
) -> list[LinearModule]:
    num_experts, width, hidden = (text[k] for k in ("num_experts", "moe_intermediate_size", "hidden_size"))
    fused_gate_up = match["rest"] == GATE_UP
    expected = (num_experts, 2 * width, hidden) if fused_gate_up else (num_experts, hidden, width)
    if shape != expected:
        raise ModelError(f"{source.path}: {tensor} has shape {list(shape)}, config.json says {list(expected)}")
    return list(fused_linears(tensor, shape))


def fused_linears(tensor: str, shape: tuple[int, ...]) -> tuple[LinearModule, ...]:
    """The linears that a fused expert tensor holds, in expert order; empty for any other tensor."""
    match = _LAYER.match(tensor)
    if match is None or match["rest"] not in (GATE_UP, DOWN) or len(shape) != 3 or not 0 < shape[0] <= MAX_EXPERTS:
        return ()
    if match["rest"] == DOWN:
        num_experts, rows, columns = shape
        parts: dict[str, slice | None] = {"down_proj": None}
    else:
        num_experts, rows, columns = shape[0], shape[1] // 2, shape[2]
        parts = {"gate_proj": slice(0, rows), "up_proj": slice(rows, 2 * rows)}
    base = tensor.rsplit(".", 1)[0]
    modules = []
    for expert in range(num_experts):
        for projection, part in parts.items():
            name = ModuleName(f"{base}.{expert}.{projection}")
            modules.append(
                LinearModule(
                    name=name,
                    kind=ModuleKind.EXPERT,
                    layer=int(match["layer"]),
                    expert=expert,
                    projection=projection,
                    shape=(rows, columns),
                    tensor=tensor,
                    slices=(expert,) if part is None else (expert, part),
                    scale_group=name if part is None else f"{base}.{expert}.gate_up",
                )
            )
    return tuple(modules)


def layer_of(tensor: str) -> int | None:
    """The text layer a tensor or module belongs to; None outside the layers and in the vision tower."""
    match = _LAYER.match(tensor)
    return int(match["layer"]) if match else None


def linear_module(name: str, shape: tuple[int, ...]) -> LinearModule | None:
    """The quantizable linear of that name, un-fused and read from ``name.weight`` [O, K]; None for any other module."""
    match = _LAYER.match(name)
    if match is None or len(shape) != 2:
        return None
    tensor = f"{name}.weight"
    if _DENSE.match(f"{match['rest']}.weight"):
        return _dense_module(tensor, shape, match)
    expert = _EXPERT.match(name)
    if expert is None or not match["rest"].startswith("experts."):
        return None
    down = expert["projection"] == "down_proj"
    return LinearModule(
        name=ModuleName(name),
        kind=ModuleKind.EXPERT,
        layer=int(match["layer"]),
        expert=int(expert["expert"]),
        projection=expert["projection"],
        shape=(shape[0], shape[1]),
        tensor=tensor,
        slices=(),
        scale_group=name if down else f"{expert['parent']}.{expert['expert']}.gate_up",
    )


def values_read_from_keys(linears: Iterable[str]) -> set[str]:
    """The ``v_proj`` of attention layers that have a ``k_proj`` and none of their own (``attention_k_eq_v``).

    No tensor has these names, but a server that fuses q, k and v builds all three and reads keys into both places, so
    whatever is said of such a layer's linears by name must be said of this one too.
    """
    names = set(linears)
    values = {f"{name.removesuffix('k_proj')}v_proj" for name in names if name.endswith(".self_attn.k_proj")}
    return values - names


def _dense_module(tensor: str, shape: tuple[int, ...], match: re.Match[str]) -> LinearModule:
    name = ModuleName(tensor.removesuffix(".weight"))
    parent, projection = name.rsplit(".", 1)
    attention = parent.endswith("self_attn")
    group = str(name)
    if projection in ("q_proj", "k_proj", "v_proj"):
        group = f"{parent}.qkv"
    elif projection in ("gate_proj", "up_proj"):
        group = f"{parent}.gate_up"
    return LinearModule(
        name=name,
        kind=ModuleKind.ATTENTION if attention else ModuleKind.DENSE_MLP,
        layer=int(match["layer"]),
        expert=None,
        projection=projection,
        shape=(shape[0], shape[1]),
        tensor=tensor,
        slices=(),
        scale_group=group,
    )


def _refuse_strangers(source: TensorFolder, strangers: list[str], total: int) -> None:
    if strangers:
        skipped = sum(source.tensors[name].numel for name in strangers)
        raise ModelError(
            f"{source.path}: {strangers[0]} looks like fused experts under a name Fourfold does not know; "
            f"quantizing would skip {100 * skipped / total:.1f} % of the parameters "
            f"({len(strangers)} tensors); known names: {GATE_UP}, {DOWN}"
        )


def _require_all_layers(source: TensorFolder, linears: Mapping[ModuleName, LinearModule], num_layers: int) -> None:
    for part in (GATE_UP, DOWN):
        present = {m.layer for m in linears.values() if m.tensor.endswith(part)}
        missing = sorted(set(range(num_layers)) - present)
        if missing:
            raise ModelError(f"{source.path}: no {part} in layer {missing[0]} ({len(missing)} layers without)")
