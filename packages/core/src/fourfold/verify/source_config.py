"""The rule that config.json says what the source's says, whatever tool wrote it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fourfold.models.gemma4_config import FULL_ATTENTION, attention_heads, layer_number, layer_overrides
from fourfold.verify.defaults import config_defaults
from fourfold.verify.facts import Defaults, Difference, differences, num_leaves, same, shown

if TYPE_CHECKING:
    from fourfold.verify.checkpoint import Checkpoint
    from fourfold.verify.rule import Look

_TEXT, _TEXT_ALONE = "text_config", "gemma4_text"
_QUANTIZATION = "quantization_config"
#: What says the heads of single layers, in two ways (:mod:`fourfold.models.gemma4_config`).
_GLOBAL_HEADS = ("global_head_dim", "num_global_key_value_heads")
_OVERRIDES, _HEADS = "per_layer_config", ("head_dim", "num_key_value_heads")


def config_of_source(look: Look, checkpoint: Checkpoint) -> None:
    """Apart from quantization_config (and the writer's version), config.json says what the source's says."""
    if checkpoint.source is None:
        return
    theirs = checkpoint.source.index.config
    look.count(num_leaves(theirs))
    for key, found, expected in config_differences(checkpoint.config, theirs):
        look.wrong(
            f"config.json: {key}", found=shown(found), expected=shown(expected),
            message=f"config.json differs from the source's in {key}; the weights were trained with the source's",
        )  # fmt: skip


def config_differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterator[Difference]:
    """Facts of two configs of one model that differ; an absent key is Transformers' default."""
    ours, theirs = _spelled_alike(ours), _spelled_alike(theirs)
    if same(ours, theirs):
        return
    if theirs.get("model_type") == _TEXT_ALONE:
        yield from _with_heads(ours, theirs, config_defaults(text_alone=True), "")
        return
    known = config_defaults(text_alone=False)
    # A section without a dtype has the model's.
    inherited = {
        name: replace(own, values={**own.values, "dtype": theirs.get("dtype")}) for name, own in known.sections.items()
    }
    if all(isinstance(side.get(_TEXT), Mapping) for side in (ours, theirs)):
        yield from _with_heads(ours[_TEXT], theirs[_TEXT], inherited[_TEXT], f"{_TEXT}.")
        ours, theirs = ({k: v for k, v in side.items() if k != _TEXT} for side in (ours, theirs))
    yield from differences(ours, theirs, Defaults(known.values, inherited))


def _spelled_alike(config: Mapping[str, Any]) -> dict[str, Any]:
    """Without the quantization; old names and values as today's."""
    alike: dict[str, Any] = _dtype_by_name({key: value for key, value in config.items() if key != _QUANTIZATION})
    alike |= {key: _dtype_by_name(value) for key, value in alike.items() if key.endswith("_config")}
    vision = alike.get("vision_config")
    rope = vision.get("rope_parameters") if isinstance(vision, Mapping) else None
    if isinstance(vision, Mapping) and isinstance(rope, Mapping) and rope.get("rope_type") == "default":
        # Transformers calls the vision tower's only kind axial by now, and reads the old name as that.
        alike["vision_config"] = {**vision, "rope_parameters": {**rope, "rope_type": "axial"}}
    return alike


def _dtype_by_name(section: Any) -> Any:
    """A section with ``torch_dtype`` under its name of today."""
    if not isinstance(section, Mapping) or "torch_dtype" not in section or "dtype" in section:
        return section
    return {"dtype" if key == "torch_dtype" else key: value for key, value in section.items()}


def _with_heads(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], defaults: Defaults, prefix: str
) -> Iterator[Difference]:
    """Differences of two text configs; heads are compared by layer where they are not stated in the same way."""
    stated = {_OVERRIDES, *_GLOBAL_HEADS}
    if not all(same(ours.get(key), theirs.get(key)) for key in stated):
        try:
            layers = list(_head_differences(ours, theirs))
        except (KeyError, TypeError, ValueError, IndexError, OverflowError):
            pass  # no numbers, or not those of every layer: compared as they stand
        else:
            yield from (one._replace(key=prefix + one.key) for one in layers)
            ours, theirs = ({k: v for k, v in side.items() if k not in stated} for side in (ours, theirs))
    yield from differences(ours, theirs, defaults, prefix)


def _head_differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterator[Difference]:
    full: tuple[int, ...] = ()
    for side in (ours, theirs):
        _require_layers(side, len(theirs["layer_types"]))
    for index, kind in enumerate(theirs["layer_types"]):
        heads = attention_heads(theirs, index)
        full = heads if kind == FULL_ATTENTION else full
        for name, found, expected in zip(_HEADS, attention_heads(ours, index), heads, strict=True):
            if found != expected:
                yield Difference(f"{_OVERRIDES}.{index}.{name}", found, expected)
        own, its = _beside_heads(ours, index), _beside_heads(theirs, index)
        yield from differences(own, its, Defaults(theirs), f"{_OVERRIDES}.{index}.")
    # Some servers read these two even where Transformers goes by the layers.
    for key, by_layer in zip(_GLOBAL_HEADS, full, strict=False):
        stated, expected = ours.get(key), theirs.get(key, by_layer)
        if stated is not None and not same(stated, expected):
            yield Difference(key, stated, expected)


def _require_layers(text: Mapping[str, Any], count: int) -> None:
    """ValueError unless overrides are of layers that there are, each once, and all heads whole numbers: Transformers
    refuses anything else, or takes it for what it is not.
    """
    overrides = text.get(_OVERRIDES) or {}
    numbers = [layer_number(key) for key in overrides]
    heads = [entry[key] for entry in (text, *overrides.values()) for key in (*_HEADS, *_GLOBAL_HEADS) if key in entry]
    if len(set(numbers)) < len(numbers) or not all(n is not None and n < count for n in numbers):
        raise ValueError("layers")
    if not all(type(value) is int for value in heads if value is not None):
        raise ValueError("heads")


def _beside_heads(text: Mapping[str, Any], index: int) -> dict[str, Any]:
    return {key: value for key, value in layer_overrides(text, index).items() if key not in _HEADS}
