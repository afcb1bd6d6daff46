"""How faults are planted in tensors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file

from fourfold.config import KVCache, Scheme

from .good_checkpoints import EXPERT, EXPERTS, LAYERS, TEXT, Editable

PARTS = ("packed_weight", "block_scale", "global_scale", "input_global_scale")
GATE, UP, DOWN = (f"{EXPERT}.{p}_proj" for p in ("gate", "up", "down"))
ATTENTION, DENSE = f"{TEXT}.0.self_attn", f"{TEXT}.0.mlp"
Plant = Callable[[Editable, Path], object]
DENSE_GATE = f"{DENSE}.gate_proj"
QKV = tuple(f"{ATTENTION}.{p}_proj" for p in "qkv")
FP8 = {"kv_cache": KVCache.FP8}
HEADROOM = {"headroom": True}
W4A16 = {"scheme": Scheme.W4A16}


def source_weight(source: Path, module: str) -> torch.Tensor:
    """A module's unquantized weight."""
    tensors = load_file(source / "model.safetensors")
    if f"{module}.weight" in tensors:
        return tensors[f"{module}.weight"]
    layer, _, rest = module.partition(".experts.")
    expert, projection = rest.split(".")
    if projection == "down_proj":
        return tensors[f"{layer}.experts.down_proj"][int(expert)]
    gate, up = tensors[f"{layer}.experts.gate_up_proj"][int(expert)].chunk(2)
    return gate if projection == "gate_proj" else up


def drop(*names: str) -> Plant:
    """Remove tensors by name."""
    return lambda e, _: [e.tensors.pop(name) for name in names]


def drop_part(module: str, part: str) -> Plant:
    return lambda e, _: e.tensors.pop(e.key(module, part))


def drop_modules(prefix: str, replace_by_source: bool = False) -> Plant:
    def plant(e: Editable, source: Path) -> None:
        gone = [name for name in e.tensors if name.startswith(prefix)]
        modules = {name.rpartition(".")[0] for name in gone}
        for name in gone:
            del e.tensors[name]
        for module in modules if replace_by_source else ():
            e.tensors[f"{module}.weight"] = source_weight(source, module).contiguous()

    return plant


def fuse_layer(layer: int) -> Plant:
    """Leave a layer's experts as they are in the source."""

    def plant(e: Editable, source: Path) -> None:
        drop_modules(f"{TEXT}.{layer}.experts.")(e, source)
        tensors = load_file(source / "model.safetensors")
        e.tensors |= {n: t for n, t in tensors.items() if n.startswith(f"{TEXT}.{layer}.experts.")}

    return plant


def fill(module: str, part: str, value: float) -> Plant:
    return lambda e, _: e.fill(module, part, value)


def scale_by(module: str, part: str, factor: float) -> Plant:
    return lambda e, _: e.scale_by(module, part, factor)


def turn(modules: tuple[str, ...], part: str) -> Plant:
    """Store the reciprocal."""
    return lambda e, _: [e.put(m, part, e.part(m, part).reciprocal()) for m in modules]


def all_modules(e: Editable) -> list[str]:
    suffix = f".{e.layout.global_scale}"
    return [name.removesuffix(suffix) for name in e.tensors if name.endswith(suffix)]


def turn_all(part: str, suffix: str = "") -> Plant:
    return lambda e, _: [e.put(m, part, e.part(m, part).reciprocal()) for m in all_modules(e) if m.endswith(suffix)]


def set_bytes(module: str, part: str, byte: int, count: int | None) -> Plant:
    """Overwrite the first ``count`` bytes of a part (None: all)."""

    def plant(e: Editable, _: Path) -> None:
        old = e.part(module, part)
        data = old.view(torch.uint8).clone().flatten()
        data[:count] = byte
        e.put(module, part, data.view(old.dtype).reshape(old.shape))

    return plant


def change(module: str, part: str, how: Callable[[torch.Tensor], torch.Tensor]) -> Plant:
    return lambda e, _: e.put(module, part, how(e.part(module, part)))


def swap(first: str, second: str) -> Plant:
    return lambda e, _: e.swap(first, second)


def store(name: str, value: torch.Tensor | Callable[[Editable], torch.Tensor]) -> Plant:
    return lambda e, _: e.tensors.__setitem__(name, value(e).contiguous() if callable(value) else value)


def edit(name: str, how: Callable[[torch.Tensor], torch.Tensor]) -> Plant:
    """Change a kept tensor."""
    return lambda e, _: e.tensors.__setitem__(name, how(e.tensors[name].clone()).contiguous())


def flip_bit(tensor: torch.Tensor) -> torch.Tensor:
    tensor.view(torch.uint8).flatten()[0] ^= 1
    return tensor


def requantize(module: str, how: Callable[[torch.Tensor], torch.Tensor]) -> Plant:
    return lambda e, source: e.requantize(module, how(source_weight(source, module)))


def interleave(e: Editable, source: Path) -> None:
    """Gate and up rows alternate in the fused tensor, and were split in the middle."""
    gate, up = source_weight(source, GATE), source_weight(source, UP)
    mixed = torch.stack((gate, up), dim=1).flatten(0, 1)
    e.requantize(GATE, mixed[: gate.shape[0]])
    e.requantize(UP, mixed[gate.shape[0] :])


def quantize_kept(module: str) -> Plant:
    """Quantize a linear that must stay as it is, with the parts of a good one as filling."""

    def plant(e: Editable, _: Path) -> None:
        rows, columns = e.tensors.pop(f"{module}.weight").shape
        torch.manual_seed(0)
        e.put(module, "packed_weight", torch.randint(0, 256, (rows, columns // 2), dtype=torch.uint8))
        scale = torch.rand(rows, columns // 16) * 400 + 40
        e.put(module, "block_scale", scale.to(torch.float8_e4m3fn))
        for part in PARTS[2:]:
            e.put(module, part, e.part(DOWN, part))

    return plant


def rename(old: str, new: str) -> Plant:
    def plant(e: Editable, _: Path) -> None:
        e.tensors = {name.replace(old, new): tensor for name, tensor in e.tensors.items()}

    return plant


def move(old: str, new: str) -> Plant:
    return lambda e, _: [e.tensors.__setitem__(n.replace(old, new), e.tensors[n]) for n in list(e.tensors) if old in n]


def rotate_experts(e: Editable, _: Path) -> None:
    """Experts 0, 1, 2 of a layer stand one place on."""
    for part in ("gate_proj", "up_proj", "down_proj"):
        e.swap(f"{TEXT}.1.experts.0.{part}", f"{TEXT}.1.experts.1.{part}")
        e.swap(f"{TEXT}.1.experts.1.{part}", f"{TEXT}.1.experts.2.{part}")


def flip_exponent(tensor: torch.Tensor) -> torch.Tensor:
    data = tensor.view(torch.uint8).clone()
    data[3, 1] ^= 0x10  # the exponent's second bit: a factor of 4
    return data.view(tensor.dtype)


def fused_beside(e: Editable, source: Path) -> None:
    """The fused tensor stays although its experts are stored."""
    name = f"{TEXT}.0.experts.down_proj"
    e.tensors[name] = load_file(source / "model.safetensors")[name]


def other_layout(e: Editable, _: Path) -> None:
    """A tensor as the other layout names it."""
    e.tensors[f"{GATE}.{'weight_packed' if e.is_modelopt else 'weight_scale_2'}"] = torch.ones(1)


def wide_global_scale(e: Editable, _: Path) -> None:
    """The same weights under a global scale so large that block scales are subnormal."""
    e.put(UP, "block_scale", (e.part(UP, "block_scale").float() / 2**15).to(torch.float8_e4m3fn))
    e.scale_by(UP, "global_scale", 2**15)


def change_k_scales(how: Callable[[torch.Tensor], torch.Tensor]) -> Plant:
    def plant(e: Editable, _: Path) -> None:
        e.tensors |= {name: how(t).contiguous() for name, t in e.tensors.items() if name.endswith("k_scale")}

    return plant


def other_router(e: Editable, _: Path) -> None:
    e.tensors[f"{TEXT}.0.router.proj.weight"] = e.tensors[f"{TEXT}.1.router.proj.weight"].clone()


def put_at(index: int, value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """Overwrite one row or element."""
    return lambda tensor: tensor.index_fill(0, torch.tensor([index]), value)


def transposed_scales(scale: torch.Tensor) -> torch.Tensor:
    return scale.view(torch.uint8).t().reshape(scale.shape).view(scale.dtype)


def exchange(first: str, second: str, part: str) -> Plant:
    """Exchange one part of two modules."""

    def plant(e: Editable, _: Path) -> None:
        a, b = e.key(first, part), e.key(second, part)
        e.tensors[a], e.tensors[b] = e.tensors[b], e.tensors[a]

    return plant


def copy_module(source: str, target: str) -> Plant:
    """Write all parts of a module over another's."""

    def plant(e: Editable, _: Path) -> None:
        for part in PARTS:
            if e.key(source, part) in e.tensors:
                e.put(target, part, e.part(source, part).clone())

    return plant


def roll_row(scale: torch.Tensor) -> torch.Tensor:
    data = scale.view(torch.uint8).clone()
    data[40] = data[40].roll(1)
    return data.view(scale.dtype)


def flip_code_bit(bit: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Flip a bit of the first code of magnitude 6 (bits 0 to 2 its magnitude, 3 its sign)."""

    def change(packed: torch.Tensor) -> torch.Tensor:
        data = packed.clone().flatten()
        at = int((data & 7 == 7).nonzero()[0])
        data[at] ^= 1 << bit
        return data.reshape(packed.shape)

    return change


def scale_group_by(modules: tuple[str, ...], factor: float) -> Plant:
    return lambda e, _: [e.scale_by(module, "global_scale", factor) for module in modules]


def fuse_everything(e: Editable, source: Path) -> None:
    """Leave all experts as they are in the source, and ignore them."""
    for layer in range(LAYERS):
        fuse_layer(layer)(e, source)
        for expert in range(EXPERTS) if not e.is_modelopt else ():
            for part in ("gate_proj", "up_proj", "down_proj"):
                e.ignore(f"{TEXT}.{layer}.experts.{expert}.{part}")
        if e.is_modelopt:
            e.ignore(f"{TEXT}.{layer}.experts*")


def drop_all_experts_inputs(e: Editable, _: Path) -> None:
    suffix = f".{e.layout.input_global_scale}"
    for name in [name for name in e.tensors if name.endswith(suffix) and ".experts." in name]:
        del e.tensors[name]
