"""W4A4 or W4A16, module by module: what ``config.json`` states, and what the tensors are.

A config states one scheme for all modules, or of each its own: ModelOpt's ``MIXED_PRECISION`` in ``quantized_layers``,
compressed-tensors in several config groups, of which a reader takes the one that names the module before the one that
names its class.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from fourfold.checkpoint.layouts import COMPRESSED_TENSORS, MODELOPT
from fourfold.config import MIXED, Scheme
from fourfold.verify.patterns import LINEAR_CLASSES, MAX_PATTERNS, matcher

if TYPE_CHECKING:
    from fourfold.checkpoint.layouts import Layout

MODELOPT_ALGORITHMS = {"NVFP4": Scheme.W4A4, "W4A16_NVFP4": Scheme.W4A16}
MODELOPT_MIXED = "MIXED_PRECISION"


def stated_schemes(
    section: Mapping[str, Any],
    layout: Layout | None,
    modules: Iterable[str],
    spelled: Callable[[str], str] = str,
) -> dict[str, Scheme]:
    """What ``quantization_config`` states of ``modules``; those it says nothing known of are left out.

    ``spelled`` is how a reader that matches patterns calls a module.
    """
    if not section or layout is None:
        return {}
    if layout is MODELOPT and section.get("quant_algo") == MODELOPT_MIXED:
        algorithms = quantized_layers(section)
        found = {name: MODELOPT_ALGORITHMS.get(algorithms.get(name, "")) for name in modules}
        return {name: scheme for name, scheme in found.items() if scheme is not None}
    groups = config_groups(section)
    if layout is COMPRESSED_TENSORS and len(groups) > 1:
        return _of_groups(groups, modules, spelled)
    stated = _of_all(section, layout, groups)
    return dict.fromkeys(modules, stated) if stated is not None else {}


def _of_all(section: Mapping[str, Any], layout: Layout, groups: Mapping[str, Mapping[str, Any]]) -> Scheme | None:
    inputs = any("input_activations" in arguments_of(group) for group in groups.values())
    if layout is COMPRESSED_TENSORS:
        return (Scheme.W4A4 if inputs else Scheme.W4A16) if groups else None
    stated = MODELOPT_ALGORITHMS.get(str(section.get("quant_algo")))
    # vLLM takes a group without activations at its word.
    return Scheme.W4A16 if stated is Scheme.W4A4 and groups and not inputs else stated


def _of_groups(
    groups: Mapping[str, Mapping[str, Any]], modules: Iterable[str], spelled: Callable[[str], str]
) -> dict[str, Scheme]:
    named: dict[str, Scheme | None] = {}
    patterns: list[tuple[Callable[[str], bool], Scheme | None]] = []
    for group in groups.values():
        scheme = _of_group(group)
        for target in group_targets(group):
            if not target.startswith("re:"):
                named.setdefault(target, scheme)
            elif len(patterns) < MAX_PATTERNS:
                patterns.append((matcher(target, COMPRESSED_TENSORS.name), scheme))
    of_class = next((named[name] for name in LINEAR_CLASSES if name in named), None)
    found: dict[str, Scheme | None] = {}
    for name in modules:
        by_pattern = (scheme for covers, scheme in patterns if covers(spelled(name)))
        found[name] = named[name] if name in named else next(by_pattern, of_class)
    return {name: scheme for name, scheme in found.items() if scheme is not None}


def _of_group(group: Mapping[str, Any]) -> Scheme | None:
    """None of a group that is not NVFP4, such as one in FP8."""
    arguments = arguments_of(group)
    if any((a.get("num_bits"), a.get("type")) != (4, "float") for a in arguments.values()):
        return None
    return Scheme.W4A4 if "input_activations" in arguments else Scheme.W4A16


def stored_schemes(with_inputs: Mapping[str, bool], stated: Mapping[str, Scheme]) -> dict[str, Scheme]:
    """What modules are, by whether each has an input scale: the scheme of most of those of which the config says one.

    A single scale that is missing, or too many, so stays a fault of its module.
    """
    votes: dict[Scheme | None, Counter[bool]] = {}
    for name, present in with_inputs.items():
        votes.setdefault(stated.get(name), Counter())[present] += 1
    schemes = {key: Scheme.W4A4 if vote[True] > vote[False] else Scheme.W4A16 for key, vote in votes.items()}
    return {name: schemes[stated.get(name)] for name in with_inputs}


def scheme_text(schemes: Iterable[Scheme]) -> str | None:
    """``W4A4``, ``W4A16``, both, or None of nothing."""
    found = set(schemes)
    return MIXED if len(found) > 1 else next(map(str, found), None)


def quantized_layers(section: Mapping[str, Any]) -> dict[str, str]:
    """Algorithm by module of a ``MIXED_PRECISION`` config; what is no object, or states none, is ``""``."""
    layers = section.get("quantized_layers")
    if not isinstance(layers, Mapping):
        return {}
    return {str(k): str(v.get("quant_algo", "")) if isinstance(v, Mapping) else "" for k, v in layers.items()}


def config_groups(section: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The config groups by name; what is no object is left out."""
    groups = section.get("config_groups")
    return {str(k): v for k, v in groups.items() if isinstance(v, Mapping)} if isinstance(groups, Mapping) else {}


def group_targets(group: Mapping[str, Any]) -> list[str]:
    """A config group's targets; what is no text is left out."""
    return text_entries(group.get("targets"))


def text_entries(listed: object) -> list[str]:
    """The entries of a JSON list; what is no text is left out, and so is what is no list."""
    return [entry for entry in listed if isinstance(entry, str)] if isinstance(listed, list) else []


def arguments_of(group: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """How a group's weights and activations are quantized; what is not is left out."""
    return {k: group[k] for k in ("weights", "input_activations") if isinstance(group.get(k), Mapping)}
