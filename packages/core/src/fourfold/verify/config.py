"""Rules about config.json and hf_quant_config.json: what they say must be what the tensors are."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

from fourfold.checkpoint.layouts import COMPRESSED_TENSORS, MODELOPT
from fourfold.config import Scheme
from fourfold.nvfp4 import BLOCK_SIZE
from fourfold.verify.checkpoint import HF_QUANT_CONFIG, PARTS
from fourfold.verify.schemes import (
    MODELOPT_ALGORITHMS,
    MODELOPT_MIXED,
    arguments_of,
    config_groups,
    group_targets,
    quantized_layers,
)

if TYPE_CHECKING:
    from fourfold.verify.checkpoint import Checkpoint
    from fourfold.verify.rule import Look

SECTION = "config.json: quantization_config"
CT_FORMAT = "nvfp4-pack-quantized"
_ARCHITECTURES = ("Gemma4ForConditionalGeneration", "Gemma4ForCausalLM")
_VERSION = re.compile(r"^\d+(\.\d+)+\S*$")
_FP8_KV = {"num_bits": 8, "type": "float"}
_ABSENT = "absent"


def section_present(look: Look, checkpoint: Checkpoint) -> None:
    """config.json has a quantization_config."""
    look.count()
    if not checkpoint.quantization:
        look.wrong(
            SECTION, found=_ABSENT, expected="an object that says how the tensors are quantized",
            message="config.json has no quantization_config, so servers load the codes as weights or refuse them",
        )  # fmt: skip


def model_known(look: Look, checkpoint: Checkpoint) -> None:
    """The config describes a Gemma 4 mixture of experts under a class that servers know."""
    look.count()
    if checkpoint.model_fault:
        look.wrong(
            "config.json", found=checkpoint.model_fault, expected="a Gemma 4 mixture of experts",
            message=f"the model is not known, so its tensors cannot be counted: {checkpoint.model_fault}",
        )  # fmt: skip
    names = checkpoint.config.get("architectures")
    if not (isinstance(names, list) and any(name in _ARCHITECTURES for name in names)):
        look.wrong(
            "config.json: architectures", found=names, expected=" or ".join(_ARCHITECTURES),
            message="servers choose the model class by architectures and do not know this one",
        )  # fmt: skip


def method_fits(look: Look, checkpoint: Checkpoint) -> None:
    """quant_method is the layout of the tensors."""
    if not checkpoint.quantization or checkpoint.layout is None:
        return
    look.count()
    method = checkpoint.quantization.get("quant_method")
    if method != checkpoint.layout.name:
        look.wrong(
            f"{SECTION}.quant_method", found=method, expected=checkpoint.layout.name,
            message=f"quant_method is {method!r} while the tensors are in layout {checkpoint.layout.name}",
        )  # fmt: skip


def algorithm_is_nvfp4(look: Look, checkpoint: Checkpoint) -> None:
    """The algorithm (or format, bits and type) is NVFP4, of each module in one config group."""
    section = checkpoint.quantization
    if not section or checkpoint.layout is None:
        return
    if checkpoint.layout is MODELOPT:
        _expect(look, f"{SECTION}.quant_algo", section.get("quant_algo"), *MODELOPT_ALGORITHMS, MODELOPT_MIXED)
        for name, algorithm in quantized_layers(section).items():
            _expect(look, f"{SECTION}.quantized_layers.{name}.quant_algo", algorithm, *MODELOPT_ALGORITHMS)
    else:
        _expect(look, f"{SECTION}.format", section.get("format"), CT_FORMAT)
    groups = config_groups(section)
    if not groups:
        _expect(look, f"{SECTION}.config_groups", "0 groups", "1 group")
    listed = Counter(target for group in groups.values() for target in set(group_targets(group)))
    for target in (target for target, number in listed.items() if number > 1):
        _expect(look, f"{SECTION}.config_groups: {target}", f"in {listed[target]} groups", "in 1 group")
    for name, group in groups.items():
        if checkpoint.layout is COMPRESSED_TENSORS:
            _expect(look, f"{SECTION}.config_groups.{name}.format", group.get("format", CT_FORMAT), CT_FORMAT)
        for key, arguments in arguments_of(group).items():
            where = f"{SECTION}.config_groups.{name}.{key}"
            _expect(look, f"{where}.num_bits", arguments.get("num_bits"), 4)
            _expect(look, f"{where}.type", arguments.get("type"), "float")
            if checkpoint.layout is COMPRESSED_TENSORS:
                _expect(look, f"{where}.strategy", arguments.get("strategy"), "tensor_group")
                _expect(look, f"{where}.symmetric", arguments.get("symmetric"), True)
                _expect(look, f"{where}.dynamic", arguments.get("dynamic"), False if key == "weights" else "local")


def group_size_is_16(look: Look, checkpoint: Checkpoint) -> None:
    """Every stated group size is 16."""
    for name, group in config_groups(checkpoint.quantization).items():
        for key, arguments in arguments_of(group).items():
            where = f"{SECTION}.config_groups.{name}.{key}.group_size"
            _expect(look, where, arguments.get("group_size"), BLOCK_SIZE)
    layers = checkpoint.quantization.get("quantized_layers")
    for name, layer in layers.items() if isinstance(layers, Mapping) else ():
        stated = layer.get("group_size", BLOCK_SIZE) if isinstance(layer, Mapping) else BLOCK_SIZE
        _expect(look, f"{SECTION}.quantized_layers.{name}.group_size", stated, BLOCK_SIZE)
    if "group_size" in checkpoint.quantization:
        _expect(look, f"{SECTION}.group_size", checkpoint.quantization["group_size"], BLOCK_SIZE)


def version_stated(look: Look, checkpoint: Checkpoint) -> None:
    """The writer's version stands where the layout has it, and the weights are stated as compressed."""
    section = checkpoint.quantization
    if not section or checkpoint.layout is None:
        return
    look.count()
    if checkpoint.layout is MODELOPT:
        producer = section.get("producer")
        where, version = (
            f"{SECTION}.producer.version",
            producer.get("version") if isinstance(producer, Mapping) else None,
        )
    else:
        where, version = f"{SECTION}.version", section.get("version")
        _expect(look, f"{SECTION}.quantization_status", section.get("quantization_status"), "compressed")
    if not isinstance(version, str) or not (_VERSION.match(version) or version == "unknown"):
        look.wrong(
            where, found=version, expected="a version, such as 0.47.0",
            message=f"{where} is {version!r}; loaders choose how to read the tensors by it",
        )  # fmt: skip


def scheme_agrees(look: Look, checkpoint: Checkpoint) -> None:
    """The config states W4A4 or W4A16, of each module or of all, and the tensors are that."""
    stated = checkpoint.stated_schemes
    for scheme in sorted(set(stated.values())):
        look.count()
        modules = [name for name in checkpoint.modules if stated.get(name) is scheme]
        stored = checkpoint.schemes[modules[0]]
        if stored is not scheme:
            with_input = sum(PARTS[3] in checkpoint.modules[name] for name in modules)
            look.wrong(
                SECTION, found=f"{scheme} stated, input scales in {with_input} of {len(modules)} modules",
                expected=f"{stored} stated, or input scales in {'all' if scheme is Scheme.W4A4 else 'no'} modules",
                message=f"the config says {scheme}, the tensors are {stored}; a missing input scale is folded as 0 and "
                "one token is repeated forever",
            )  # fmt: skip
    if checkpoint.layout is MODELOPT:
        _groups_agree(look, checkpoint)


def _groups_agree(look: Look, checkpoint: Checkpoint) -> None:
    """ModelOpt states a module's algorithm twice, by name and as a config group."""
    layers = quantized_layers(checkpoint.quantization)
    for name, group in config_groups(checkpoint.quantization).items():
        algorithms = {layers.get(target) for target in group_targets(group)} - {None}
        algorithms |= {str(checkpoint.quantization.get("quant_algo"))} - {MODELOPT_MIXED}
        inputs = "input_activations" in arguments_of(group)
        if inputs and any(MODELOPT_ALGORITHMS.get(str(a)) is Scheme.W4A16 for a in algorithms):
            look.wrong(
                f"{SECTION}.config_groups.{name}", found="input_activations", expected="none under W4A16_NVFP4",
                message="quant_algo says weights only, config_groups quantize activations too",
            )  # fmt: skip


def hf_quant_config_agrees(look: Look, checkpoint: Checkpoint) -> None:
    """Modelopt layout: hf_quant_config.json says the same as config.json. The other layout has none."""
    if checkpoint.layout is None or HF_QUANT_CONFIG in checkpoint.unreadable:
        return
    look.count()
    if checkpoint.layout is COMPRESSED_TENSORS:
        if HF_QUANT_CONFIG in checkpoint.folder.files:
            look.wrong(
                HF_QUANT_CONFIG, found="the other layout's file", expected="no such file",
                message=f"{HF_QUANT_CONFIG} is left over from the modelopt layout; TensorRT-LLM believes it",
            )  # fmt: skip
        return
    content = checkpoint.content(HF_QUANT_CONFIG)
    if HF_QUANT_CONFIG in checkpoint.unreadable:
        return  # a finding of its own
    facts = content.get("quantization") if isinstance(content, dict) else None
    if not isinstance(facts, dict):
        look.wrong(
            HF_QUANT_CONFIG, found=_ABSENT if content is None else "no section quantization", expected="the file",
            message=f"{HF_QUANT_CONFIG} is part of this layout; TensorRT-LLM reads nothing else",
        )  # fmt: skip
        return
    section = checkpoint.quantization
    sizes = [a.get("group_size") for g in config_groups(section).values() for a in arguments_of(g).values()]
    mixed = section.get("quant_algo") == MODELOPT_MIXED
    pairs = {
        "quant_algo": (facts.get("quant_algo"), section.get("quant_algo")),
        "kv_cache_quant_algo": (facts.get("kv_cache_quant_algo"), "FP8" if states_fp8_kv(checkpoint) else None),
        # ModelOpt's own writes neither of the two where algorithms are mixed.
        "group_size": (facts.get("group_size", BLOCK_SIZE if mixed else None), sizes[0] if sizes else BLOCK_SIZE),
        "exclude_modules": (
            _sorted(facts.get("exclude_modules", [] if mixed else None)),
            _sorted(section.get("ignore")),
        ),
        "quantized_layers": (facts.get("quantized_layers"), section.get("quantized_layers")),
    }
    for key, (found, expected) in pairs.items():
        if found != expected:
            look.wrong(
                f"{HF_QUANT_CONFIG}: quantization.{key}", found=_short(found), expected=_short(expected),
                message=f"{HF_QUANT_CONFIG} and config.json differ in {key}; servers read the one or the other",
            )  # fmt: skip


def states_fp8_kv(checkpoint: Checkpoint) -> bool:
    """Whether config.json asks for an FP8 KV cache."""
    scheme = checkpoint.quantization.get("kv_cache_scheme")
    return isinstance(scheme, Mapping) and all(scheme.get(key) == value for key, value in _FP8_KV.items())


def kv_scheme_agrees(look: Look, checkpoint: Checkpoint) -> None:
    """FP8 scales of keys and values stand in every layer exactly when the config asks for an FP8 KV cache."""
    if not checkpoint.quantization or checkpoint.layout is None:
        return
    look.count()
    scheme, stated = checkpoint.quantization.get("kv_cache_scheme"), states_fp8_kv(checkpoint)
    if scheme is not None and not stated:
        look.wrong(
            f"{SECTION}.kv_cache_scheme", found=scheme, expected=f"null, or {_FP8_KV}",
            message="the KV-cache scheme is none that servers load with NVFP4 weights",
        )  # fmt: skip
    if not stated and checkpoint.kv_names:
        look.wrong(
            f"{SECTION}.kv_cache_scheme", found=f"none stated, {len(checkpoint.kv_names)} scales stored",
            expected="an FP8 scheme, or no scales",
            message="KV-cache scales are stored but no scheme is stated; servers ignore them or refuse the file",
        )  # fmt: skip
    if stated:
        layers = {m.name.rpartition(".")[0] for m in checkpoint.linears.values() if m.projection == "k_proj"}
        for attention in sorted(layers):
            for part in ("k_scale", "v_scale"):
                key = f"{attention}.{checkpoint.layout.kv_scales[part]}"
                look.count()
                if key not in checkpoint.kv_names:
                    look.wrong(
                        key, found=_ABSENT, expected="a scale, as the KV-cache scheme is FP8",
                        message=f"{key} is missing; the server takes 1.0 and quality drops in silence",
                    )  # fmt: skip


def _expect(look: Look, where: str, found: object, *allowed: object) -> None:
    look.count()
    if found not in allowed or type(found) not in {type(value) for value in allowed}:
        expected = " or ".join(map(str, allowed))
        look.wrong(where, found=found, expected=expected, message=f"{where} is {found!r}; NVFP4 needs {expected}")


def _sorted(value: object) -> object:
    return sorted(map(str, value)) if isinstance(value, list) else value


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
