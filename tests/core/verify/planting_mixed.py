"""How faults are planted in a checkpoint whose attention is in W4A16 and the rest in W4A4."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from .good_checkpoints import Editable

MIXED = {"weights_only": ("*.self_attn.*",)}
_SWAPPED = {"NVFP4": "W4A16_NVFP4", "W4A16_NVFP4": "NVFP4"}
Plant = Callable[[Editable, Path], object]
Layers = dict[str, dict[str, Any]]


def layers(how: Callable[[Layers], object]) -> Plant:
    """Change ModelOpt's list of algorithms, in both files."""

    def plant(e: Editable, _: Path) -> None:
        for place in (e.section, e.hf["quantization"]):
            place["quantized_layers"] = {name: dict(layer) for name, layer in place["quantized_layers"].items()}
            how(place["quantized_layers"])

    return plant


def forget(module: str) -> Plant:
    """Take a module out of the list, or of the group of weights alone."""

    def plant(e: Editable, _: Path) -> None:
        if e.is_modelopt:
            layers(lambda listed: listed.pop(module))(e, _)
        else:
            e.section["config_groups"]["group_1"]["targets"].remove(module)

    return plant


def state_alone(*modules: str) -> Plant:
    """State modules of W4A4 to be of weights alone, and take their input scales away."""

    def plant(e: Editable, _: Path) -> None:
        for module in modules:
            del e.tensors[e.key(module, "input_global_scale")]
            if e.is_modelopt:
                layers(lambda listed, name=module: listed[name].update(quant_algo="W4A16_NVFP4"))(e, _)
                groups = e.section["config_groups"]
                groups["group_1"]["targets"] = [name for name in groups["group_1"]["targets"] if name != module]
                groups["group_0"]["targets"] = [*groups["group_0"]["targets"], module]
            else:
                e.section["config_groups"]["group_1"]["targets"].append(module)

    return plant


def target(*targets: str) -> Plant:
    """Other targets of the group of weights alone."""
    return lambda e, _: e.section["config_groups"]["group_1"].__setitem__("targets", list(targets))


def in_eight_bits(e: Editable, _: Path) -> None:
    """The group of weights alone is one in FP8, as some publish attention."""
    fp8 = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False, "symmetric": True}
    e.section["config_groups"]["group_1"] |= {"weights": fp8, "input_activations": fp8}


def swap_schemes(e: Editable, _: Path) -> None:
    """State each of the two schemes of the other's modules."""
    if e.is_modelopt:
        layers(lambda listed: [layer.update(quant_algo=_SWAPPED[layer["quant_algo"]]) for layer in listed.values()])(
            e, _
        )
    groups = e.section["config_groups"]
    groups["group_0"]["targets"], groups["group_1"]["targets"] = (
        groups["group_1"]["targets"],
        groups["group_0"]["targets"],
    )


def round_inputs_of_both(e: Editable, _: Path) -> None:
    """Quantized activations in the group of weights alone too."""
    groups = e.section["config_groups"]
    groups["group_0"]["input_activations"] = groups["group_1"]["input_activations"]


def target_twice(e: Editable, _: Path) -> None:
    """A module in both groups."""
    groups = e.section["config_groups"]
    groups["group_0"]["targets"] = [*groups["group_0"]["targets"], groups["group_1"]["targets"][0]]
