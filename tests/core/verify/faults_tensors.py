"""Faults in tensors: names, scales, codes and values."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from faults import Fault
from good_checkpoints import EXPERT, EXPERTS, TEXT, Editable
from safetensors.torch import load_file

from fourfold.config import KVCache, Scheme

PARTS = ("packed_weight", "block_scale", "global_scale", "input_global_scale")
GATE, UP, DOWN = (f"{EXPERT}.{p}_proj" for p in ("gate", "up", "down"))
ATTENTION, DENSE = f"{TEXT}.0.self_attn", f"{TEXT}.0.mlp"
Plant = Callable[[Editable, Path], object]
FP8 = {"kv_cache": KVCache.FP8}
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


def turn_all(part: str) -> Plant:
    return lambda e, _: [e.put(m, part, e.part(m, part).reciprocal()) for m in all_modules(e)]


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


TENSOR_FAULTS = (
    # experts
    Fault("an expert is missing", "FF020", drop_modules(f"{EXPERT}.")),
    Fault("one matrix of an expert is missing", "FF020", drop_modules(f"{DOWN}.")),
    Fault("one expert left in BF16", "FF021", drop_modules(f"{EXPERT}.", True), also=("FF106",)),
    Fault("a skipped layer, experts fused", "FF022", fuse_layer(1), also=("FF106",)),
    Fault("a skipped layer, nothing stored", "FF022", drop_modules(f"{TEXT}.1.experts.")),
    Fault("experts.12 of 12", "FF023", move(f"{TEXT}.1.experts.11.", f"{TEXT}.1.experts.{EXPERTS}.")),
    Fault("router quantized", "FF030", quantize_kept(f"{TEXT}.0.router.proj"), also=("FF107",)),
    Fault("a vision linear quantized", "FF030",
          quantize_kept("model.vision_tower.encoder.layers.0.mlp.up_proj.linear"), also=("FF107",)),
    Fault("embed_vision quantized", "FF030", quantize_kept("model.embed_vision.embedding_projection"), also=("FF107",)),
    Fault("fused experts beside the quantized ones", "FF032",
          lambda e, s: e.tensors.update({f"{TEXT}.0.experts.down_proj": load_file(s / "model.safetensors")[f"{TEXT}.0.experts.down_proj"]}),
          also=("FF106",)),
    Fault("one of q, k, v left in BF16", "FF035", drop_modules(f"{ATTENTION}.k_proj.", True), also=("FF106",)),
    # names and parts
    Fault("block scale missing", "FF024", drop_part(UP, "block_scale")),
    Fault("global scale missing", "FF024", drop_part(UP, "global_scale")),
    Fault("packed weight missing", "FF024", drop_part(UP, "packed_weight")),
    Fault("input scale missing for one expert", "FF025", drop_part(DOWN, "input_global_scale")),
    Fault("an input scale in a weights-only checkpoint", "FF026",
          lambda e, _: e.put(DOWN, "input_global_scale", e.part(DOWN, "global_scale")), variant=W4A16),
    Fault("a scale under an unknown suffix", "FF027", store(f"{GATE}.weight_scale_3", torch.ones(1))),
    Fault("a leaked _double_scale", "FF027", store(f"{GATE}._double_scale", torch.ones(4, 4))),
    Fault("a layer too many", "FF027", store(f"{TEXT}.3.layer_scalar", torch.ones(1, dtype=torch.bfloat16))),
    Fault("a norm missing", "FF028", drop(f"{TEXT}.2.input_layernorm.weight")),
    Fault("the router missing", "FF028", drop(f"{TEXT}.1.router.proj.weight")),
    Fault("a vision tensor missing", "FF028", drop("model.vision_tower.std_scale")),
    Fault("q_proj missing", "FF028", drop_modules(f"{ATTENTION}.q_proj."), also=("FF035",)),
    Fault("layer_scalar lost", "FF029", drop(f"{TEXT}.2.layer_scalar")),
    Fault("a tied lm_head stored", "FF031", store("lm_head.weight", torch.ones(256, 64, dtype=torch.bfloat16))),
    Fault("an untied lm_head lost", "FF031",
          lambda e, _: e.config.__setitem__("tie_word_embeddings", False), also=("FF112",)),
    Fault("names as inside vLLM", "FF033", rename("model.language_model.layers.1.router", "language_model.model.layers.1.router"),
          also=("FF028", "FF106", "FF108")),
    Fault("experts under moe.experts", "FF033", rename(f"{TEXT}.1.experts.", f"{TEXT}.1.moe.experts."),
          also=("FF022", "FF132")),
    Fault("two layouts mixed", "FF034",
          lambda e, _: e.tensors.update({f"{GATE}.{'weight_packed' if e.is_modelopt else 'weight_scale_2'}": torch.ones(1)}),
          also=("FF027",)),
    # dtype and shape
    Fault("block scale as BF16", "FF040", change(UP, "block_scale", lambda t: t.to(torch.bfloat16))),
    Fault("global scale as BF16", "FF040", change(UP, "global_scale", lambda t: t.to(torch.bfloat16))),
    Fault("packed weight transposed in shape", "FF041", change(DOWN, "packed_weight", torch.t)),
    Fault("block scales of blocks of 32", "FF041", change(UP, "block_scale", lambda t: t[:, ::2])),
    Fault("a scale per row", "FF041", change(UP, "global_scale", lambda t: t.reshape(1).repeat(48))),
    Fault("empty tensors from offload", "FF041",
          change(UP, "packed_weight", lambda t: torch.empty(0, dtype=torch.uint8))),
    Fault("a norm in float32", "FF042", edit(f"{TEXT}.0.input_layernorm.weight", lambda t: t.float()), blind=False),
    Fault("a norm of another width", "FF042", edit(f"{TEXT}.0.input_layernorm.weight", lambda t: t[:32])),
    # block scales
    Fault("one NaN block scale", "FF050", set_bytes(UP, "block_scale", 0x7F, 1)),
    Fault("one negative NaN block scale", "FF050", set_bytes(UP, "block_scale", 0xFF, 1)),
    Fault("negative block scale", "FF051", set_bytes(UP, "block_scale", 0xB8, 1), also=("FF091",)),
    Fault("all block scales zero", "FF052", set_bytes(UP, "block_scale", 0, None), also=("FF081", "FF090")),
    Fault("a third of the block scales flushed to zero", "FF053", set_bytes(UP, "block_scale", 0, 64),
          also=("FF081", "FF090", "FF091")),
    Fault("global scale 2^16 too large, blocks subnormal", "FF053", lambda e, _: (
        e.put(UP, "block_scale", (e.part(UP, "block_scale").float() / 2**15).to(torch.float8_e4m3fn)),
        e.scale_by(UP, "global_scale", 2**15)), also=("FF060", "FF062", "FF081", "FF090", "FF083", "FF058", "FF091")),
    Fault("block scales all one", "FF054", fill(UP, "block_scale", 1.0), also=("FF081", "FF083", "FF090")),
    # global and input scales
    Fault("global scale zero", "FF055", fill(DOWN, "global_scale", 0.0)),
    Fault("global scale infinite", "FF055", fill(DOWN, "global_scale", float("inf"))),
    Fault("global scale NaN", "FF055", fill(DOWN, "global_scale", float("nan"))),
    Fault("global scale negative", "FF055", change(DOWN, "global_scale", torch.neg)),
    Fault("input scale zero", "FF056", fill(DOWN, "input_global_scale", 0.0)),
    Fault("input scale infinite", "FF056", fill(DOWN, "input_global_scale", float("inf"))),
    Fault("input scale NaN", "FF056", fill(DOWN, "input_global_scale", float("nan"))),
    Fault("input scale denormal", "FF057", fill(DOWN, "input_global_scale", 1e-40), also=("FF056",)),
    Fault("global scale denormal", "FF057", fill(DOWN, "global_scale", 1e-41), also=("FF055", "FF081")),
    Fault("one global scale reciprocal", "FF058", turn((DOWN,), "global_scale"), also=("FF082",)),
    Fault("a reciprocal told by the source", "FF082", turn((DOWN,), "global_scale"), also=("FF058",), blind=False),
    Fault("all global scales reciprocal", "FF058", turn_all("global_scale"), also=("FF082",)),
    Fault("one input scale reciprocal", "FF059", turn((DOWN,), "input_global_scale"), also=("FF061",)),
    Fault("all input scales reciprocal", "FF059", turn_all("input_global_scale"), also=("FF061",)),
    Fault("global scale of junk memory", "FF060", scale_by(DOWN, "global_scale", 1e-20), also=("FF081", "FF083")),
    Fault("input scale of junk memory", "FF061", scale_by(DOWN, "input_global_scale", 1e-20)),
    Fault("gate and up with two global scales", "FF062", scale_by(UP, "global_scale", 2.0), also=("FF083",)),
    Fault("gate and up one ulp apart", "FF062", change(UP, "global_scale", lambda t: torch.nextafter(t, t * 2))),
    Fault("q and k with two global scales", "FF062", scale_by(f"{ATTENTION}.k_proj", "global_scale", 1.5), also=("FF083",)),
    Fault("dense gate and up with two input scales", "FF063", scale_by(f"{DENSE}.up_proj", "input_global_scale", 1.25)),
    Fault("expert gate and up with two input scales", "FF063", scale_by(UP, "input_global_scale", 1.5)),
    Fault("a KV scale zero", "FF064",
          lambda e, _: e.tensors.update({n: torch.zeros_like(t) for n, t in e.tensors.items() if n.endswith("k_scale")}),
          variant=FP8),
    # codes
    Fault("codes all zero", "FF070", set_bytes(UP, "packed_weight", 0, None), also=("FF081",)),
    Fault("codes all minus zero", "FF070", set_bytes(UP, "packed_weight", 0x88, None), also=("FF081",)),
    Fault("codes all equal", "FF071", set_bytes(UP, "packed_weight", 0x72, None), also=("FF081",)),
    Fault("only small codes", "FF072", change(UP, "packed_weight", lambda t: t & 0x99), also=("FF081", "FF083")),
    # values against the source
    Fault("a norm changed by one bit", "FF080", edit(f"{TEXT}.1.input_layernorm.weight", flip_bit), blind=False),
    Fault("layer_scalar changed", "FF080", edit(f"{TEXT}.1.layer_scalar", lambda t: t * 0.5), blind=False),
    Fault("the router of another layer", "FF080",
          lambda e, _: e.tensors.__setitem__(f"{TEXT}.0.router.proj.weight", e.tensors[f"{TEXT}.1.router.proj.weight"].clone()), blind=False),
    Fault("the vision tower changed", "FF080", edit("model.vision_tower.std_bias", lambda t: t + 1), blind=False),
    Fault("an embedding row changed", "FF080",
          edit("model.language_model.embed_tokens.weight", lambda t: t.index_fill(0, torch.tensor([255]), 1.0)), blind=False),
    Fault("a random weight", "FF081", requantize(UP, lambda w: torch.randn_like(w) * 0.02), blind=False),
    Fault("global scale off by 1.5", "FF083", scale_by(DOWN, "global_scale", 1.5), blind=False),
    Fault("nibbles swapped", "FF084", change(UP, "packed_weight", lambda t: (t << 4) | (t >> 4)), blind=False),
    Fault("gate and up swapped", "FF085", swap(GATE, UP), blind=False),
    Fault("two experts exchanged", "FF086", swap(DOWN, f"{TEXT}.1.experts.6.down_proj"), blind=False),
    Fault("experts permuted", "FF086", rotate_experts, blind=False, also=("FF062", "FF063")),
    Fault("two layers exchanged", "FF086", swap(DOWN, f"{TEXT}.0.experts.5.down_proj"), blind=False),
    Fault("weight transposed", "FF087", requantize(UP, lambda w: w.t().reshape(w.shape)), blind=False),
    Fault("gate and up rows interleaved", "FF088", interleave, blind=False),
    Fault("rows shifted by padding", "FF088", requantize(DOWN, lambda w: w.roll(4, dims=0)), blind=False),
    Fault("columns shifted", "FF089", requantize(DOWN, lambda w: w.roll(16, dims=1)), blind=False),
    Fault("block scales transposed", "FF090",
          change(UP, "block_scale", lambda t: t.view(torch.uint8).t().reshape(t.shape).view(t.dtype)), blind=False),
    Fault("one block scale with a flipped exponent bit", "FF091",
          change(UP, "block_scale", lambda t: _flip_exponent(t)), blind=False),
    Fault("one block of codes zeroed", "FF091", set_bytes(UP, "packed_weight", 0, 8), blind=False),
    Fault("NaN in a norm", "FF092", edit(f"{TEXT}.0.input_layernorm.weight", lambda t: t.index_fill(0, torch.tensor([1]), torch.nan)),
          also=("FF080",)),
    Fault("layer_scalar zero", "FF093", edit(f"{TEXT}.1.layer_scalar", torch.zeros_like), also=("FF080",)),
)  # fmt: skip


def _flip_exponent(tensor: torch.Tensor) -> torch.Tensor:
    data = tensor.view(torch.uint8).clone()
    data[3, 1] ^= 0x10  # the exponent's second bit: a factor of 4
    return data.view(tensor.dtype)
