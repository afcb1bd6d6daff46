"""Rules about the ignore list and the targets: they must match the module names, in both directions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fourfold.checkpoint.layouts import MODELOPT
from fourfold.checkpoint.untrusted import printable
from fourfold.verify.config import SECTION
from fourfold.verify.mixed import layers_quantized, targets_mean_modules
from fourfold.verify.patterns import (
    LINEAR_CLASSES,
    MAX_PATTERNS,
    PatternList,
    bounded,
    catches,
    covered,
    is_pattern,
    means_by_parts,
    unbounded,
)
from fourfold.verify.schemes import MODELOPT_MIXED, config_groups, group_targets, quantized_layers, text_entries

if TYPE_CHECKING:
    from fourfold.verify.checkpoint import Checkpoint
    from fourfold.verify.rule import Look

_IGNORE, _GROUPS = f"{SECTION}.ignore", f"{SECTION}.config_groups"


def unquantized_ignored(look: Look, checkpoint: Checkpoint) -> None:
    """Every linear that is not quantized is in the ignore list, or not a target."""
    if not checkpoint.quantization or checkpoint.layout is None:
        return
    ignored = PatternList(checkpoint.ignore_patterns(), checkpoint.layout)
    targets = _targets(checkpoint)
    for name in checkpoint.bf16_linears:
        look.count()
        if (targets is None or targets.match(name)) and not ignored.match(name):
            look.wrong(
                name, found="not ignored", expected=f"an entry in {_IGNORE}",
                message=f"{name} is unquantized but not ignored; a server builds it for NVFP4 and finds no scales",
            )  # fmt: skip


def quantized_not_ignored(look: Look, checkpoint: Checkpoint) -> None:
    """No quantized module is meant by an entry of the ignore list."""
    if checkpoint.layout is None:
        return
    look.count(len(checkpoint.modules))
    for pattern in checkpoint.ignore_patterns():
        modelopt = checkpoint.layout is MODELOPT
        for name in covered(pattern, checkpoint.layout.name, checkpoint.modules):
            if not modelopt or means_by_parts(pattern, name):
                look.wrong(
                    name, found=f"ignored by {pattern!r}", expected="not ignored",
                    message=f"{name} is quantized but ignored; a server builds it unquantized and refuses the scales",
                )  # fmt: skip


def ignore_catches_no_more(look: Look, checkpoint: Checkpoint) -> None:
    """No entry catches a quantized module by accident: ``layers.1*`` catches layer 10, a bare name is a substring."""
    if checkpoint.layout is not MODELOPT:
        return
    look.count(len(checkpoint.ignore_patterns()))
    for pattern in checkpoint.ignore_patterns():
        covers = catches(pattern, checkpoint.layout.name)
        caught = [name for name in checkpoint.modules if covers(name) and not means_by_parts(pattern, name)]
        if caught:
            look.wrong(
                f"{_IGNORE}: {pattern}", found=f"catches {caught[0]} and {len(caught) - 1} more quantized modules",
                expected="only modules under whole names",
                message=f"{pattern!r} also catches {caught[0]}: vLLM matches wildcards and substrings; end it at a dot",
            )  # fmt: skip


def ignore_entries_match(look: Look, checkpoint: Checkpoint) -> None:
    """Every entry of the ignore list matches some module of the model."""
    if checkpoint.layout is None:
        return
    listed = checkpoint.quantization.get("ignore")
    if listed is not None and not (isinstance(listed, list) and all(isinstance(entry, str) for entry in listed)):
        look.wrong(_IGNORE, found=listed, expected="a list of names", message=f"{_IGNORE} is no list of names")
    for pattern in checkpoint.ignore_patterns():
        look.count()
        if pattern not in LINEAR_CLASSES and not covered(pattern, checkpoint.layout.name, checkpoint.module_names):
            look.wrong(
                f"{_IGNORE}: {pattern}", found="matches no module", expected="a module of this model",
                message=f"{pattern!r} matches nothing: the list was written for other names, so what it meant is not "
                "ignored",
            )  # fmt: skip


def quantized_targeted(look: Look, checkpoint: Checkpoint) -> None:
    """Every quantized module is a target of a config group, or one of ModelOpt's mixed layers, and nothing else is."""
    if not checkpoint.quantization:
        return
    if checkpoint.layout is MODELOPT:
        layers_quantized(look, checkpoint)
        return
    targets = _targets(checkpoint)
    look.count(len(checkpoint.modules))
    for name in checkpoint.modules:
        if targets is not None and not targets.match(name):
            look.wrong(
                name, found="no target matches", expected="a target in config_groups",
                message=f"{name} is quantized but no target covers it; a server builds it unquantized",
            )  # fmt: skip
    targets_mean_modules(look, checkpoint)


def patterns_bounded(look: Look, checkpoint: Checkpoint) -> None:
    """Every pattern of ignore list and targets can be matched in bounded time, and there are not too many."""
    if checkpoint.layout is None:
        return
    layout, listed = checkpoint.layout.name, text_entries(checkpoint.quantization.get("ignore"))
    targets = _target_patterns(checkpoint)
    for key, where, entries in ((_IGNORE, "in the ignore list", listed), (_GROUPS, "among the targets", targets)):
        number = sum(is_pattern(entry, layout) for entry in entries)
        if number > MAX_PATTERNS:
            look.wrong(
                key, found=f"{number} patterns", expected=f"at most {MAX_PATTERNS}",
                message=f"{number} patterns {where}, which servers match against every module at their start; list "
                "names in their place",
            )  # fmt: skip
    patterns = [*checkpoint.ignore_patterns(), *bounded(targets, layout)]
    look.count(len(patterns))
    for pattern in patterns:
        if (reason := unbounded(pattern, layout)) is not None:
            look.wrong(
                f"{SECTION}: {printable(pattern, 80)}", found=reason, expected="one that matches in linear time",
                message=f"{printable(pattern, 80)!r} can take for ever to match one name ({reason}); servers match it "
                "against every module when they start",
            )  # fmt: skip


def _target_patterns(checkpoint: Checkpoint) -> list[str]:
    return [target for group in config_groups(checkpoint.quantization).values() for target in group_targets(group)]


def _targets(checkpoint: Checkpoint) -> PatternList | None:
    """The targets as patterns; None when they mean every linear."""
    if checkpoint.layout is MODELOPT and checkpoint.quantization.get("quant_algo") == MODELOPT_MIXED:
        # What is not listed is not quantized, and ModelOpt lists it nowhere else.
        return PatternList(quantized_layers(checkpoint.quantization), MODELOPT, as_server=False)
    if checkpoint.layout is None or checkpoint.layout is MODELOPT:
        return None  # ModelOpt's list names classes; vLLM does not read it
    targets = _target_patterns(checkpoint)
    return None if LINEAR_CLASSES & set(targets) else PatternList(targets, checkpoint.layout)
