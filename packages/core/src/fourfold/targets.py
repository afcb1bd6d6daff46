"""From a recipe's patterns to the modules that are quantized, before anything heavy starts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from fnmatch import fnmatchcase

from fourfold.config import Recipe, Scheme
from fourfold.errors import ConfigError
from fourfold.models.gemma4 import Gemma4Moe, LinearModule, ModuleKind
from fourfold.nvfp4.constants import BLOCK_SIZE


def resolve_targets(gemma: Gemma4Moe, recipe: Recipe) -> tuple[LinearModule, ...]:
    """The modules to quantize, in layer order.

    Raises :class:`ConfigError` for a pattern that matches nothing, for a choice that leaves nothing, and for one
    that a server cannot load: part of a scale group, or some experts of a layer, left out or in another scheme.
    """
    names = tuple(gemma.linears)
    for option, patterns in (("include", recipe.include), ("exclude", recipe.exclude)):
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise ConfigError(
                    f"recipe.{option}: pattern {pattern!r} matches no module; modules are named like {names[-1]}"
                )
    targets = tuple(
        module
        for module in gemma.linears.values()
        if _any_match(module.name, recipe.include) and not _any_match(module.name, recipe.all_excludes)
    )
    if not targets:
        raise ConfigError("recipe: the patterns exclude every module; nothing would be quantized")
    _require_block_width(targets)
    _require_two_schemes(targets, recipe)
    require_whole_groups(gemma, targets, recipe)
    return targets


def _any_match(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _require_block_width(targets: tuple[LinearModule, ...]) -> None:
    for module in targets:
        if module.shape[1] % BLOCK_SIZE:
            raise ConfigError(
                f"{module.name}: {module.shape[1]} input features are no multiple of NVFP4's block of {BLOCK_SIZE}; "
                f"exclude it with --exclude '*.{module.projection}'"
            )


def _require_two_schemes(targets: tuple[LinearModule, ...], recipe: Recipe) -> None:
    """Where a recipe names targets whose activations stay BF16, there are such, and others."""
    if recipe.weights_only and recipe.scheme is Scheme.W4A16:
        raise ConfigError("recipe.weights_only: under scheme W4A16 all modules are; leave it out, or say scheme W4A4")
    for pattern in recipe.weights_only:
        if not any(fnmatchcase(module.name, pattern) for module in targets):
            raise ConfigError(f"recipe.weights_only: pattern {pattern!r} matches no module that is quantized")
    if recipe.weights_only and all(recipe.scheme_of(module.name) is Scheme.W4A16 for module in targets):
        raise ConfigError("recipe.weights_only: the patterns cover every target; say scheme W4A16 in their place")


def require_whole_groups(gemma: Gemma4Moe, targets: tuple[LinearModule, ...], recipe: Recipe) -> None:
    """Raise :class:`ConfigError` for a part of a scale group or a layer's experts: left out, or in another scheme."""
    chosen = frozenset(module.name for module in targets)
    members: dict[str, list[LinearModule]] = defaultdict(list)
    for module in gemma.linears.values():
        members[module.scale_group].append(module)
        if module.kind is ModuleKind.EXPERT:
            members[f"the experts of layer {module.layer}"].append(module)
    for group, modules in members.items():
        left_out = [module.name for module in modules if module.name not in chosen]
        if left_out and len(left_out) < len(modules):
            raise ConfigError(
                f"recipe: {left_out[0]} is left out while others of {group} are quantized; "
                "a server loads them as one tensor, so quantize all of them or none"
            )
        alone = [module.name for module in modules if recipe.scheme_of(module.name) is Scheme.W4A16]
        if alone and len(alone) < len(modules):
            raise ConfigError(
                f"recipe.weights_only: the patterns name {alone[0]} and not others of {group}; "
                "a server loads them as one tensor, so name all of them or none"
            )
