"""Rules about checkpoints of two schemes: what is stated of each module must mean one, and fused ones the same."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from fourfold.checkpoint.layouts import COMPRESSED_TENSORS
from fourfold.checkpoint.untrusted import printable
from fourfold.models.gemma4 import ModuleKind, values_read_from_keys
from fourfold.verify.config import SECTION
from fourfold.verify.patterns import LINEAR_CLASSES, MAX_PATTERNS, matcher
from fourfold.verify.schemes import (
    MODELOPT_MIXED,
    config_groups,
    group_targets,
    quantized_layers,
    stated_schemes,
)

if TYPE_CHECKING:
    from fourfold.config import Scheme
    from fourfold.verify.checkpoint import Checkpoint
    from fourfold.verify.rule import Look

_TEXT, _TEXT_IN_VLLM = "model.language_model.", "language_model.model."


def fused_in_one_scheme(look: Look, checkpoint: Checkpoint) -> None:
    """What a server loads as one tensor is stated to be of one scheme: q+k+v, gate+up, a layer's experts."""
    members: dict[str, list[str]] = defaultdict(list)
    for name, module in checkpoint.linears.items():
        if name in checkpoint.modules:
            experts = module.kind is ModuleKind.EXPERT
            members[f"the experts of layer {module.layer}" if experts else module.scale_group].append(name)
    # No tensor has these names, but a server that fuses q, k and v looks for them too.
    values = values_read_from_keys(checkpoint.modules)
    for name in values:
        members[f"{name.removesuffix('.v_proj')}.qkv"].append(name)
    stated = dict(checkpoint.stated_schemes)
    if checkpoint.layout is COMPRESSED_TENSORS:
        stated |= stated_schemes(checkpoint.quantization, checkpoint.layout, values)
    for group, names in sorted(members.items()):
        look.count()
        schemes: dict[Scheme, str] = {}
        for name in names:
            if name in stated:
                schemes.setdefault(stated[name], name)
        if len(schemes) > 1:
            (one, first), (other, second) = schemes.items()
            look.wrong(
                second, found=f"stated as {other}", expected=f"{one}, as {first}",
                message=f"{second} and {first} are of {group}, which a server loads as one tensor; quantize and state "
                "it in one scheme",
            )  # fmt: skip


def layers_quantized(look: Look, checkpoint: Checkpoint) -> None:
    """ModelOpt's mixed layers are the quantized modules."""
    if checkpoint.quantization.get("quant_algo") != MODELOPT_MIXED:
        return
    layers = quantized_layers(checkpoint.quantization)
    look.count(len(checkpoint.modules) + len(layers))
    for name in sorted(checkpoint.modules.keys() - layers.keys()):
        look.wrong(
            name, found="not listed", expected="an entry in quantized_layers",
            message=f"{name} is quantized but not in quantized_layers; list it, or a server builds it unquantized",
        )  # fmt: skip
    for name in sorted(layers.keys() - checkpoint.modules.keys()):
        look.wrong(
            f"{SECTION}.quantized_layers: {printable(name, 80)}", found="no quantized module", expected="no such entry",
            message=f"quantized_layers lists {printable(name, 80)}, which is not quantized; take it out, or a server "
            "finds no scales",
        )  # fmt: skip


def targets_mean_modules(look: Look, checkpoint: Checkpoint) -> None:
    """Of several config groups, each target matches something, and a pattern what it matches in vLLM's spelling too."""
    groups = config_groups(checkpoint.quantization)
    if len(groups) < 2:
        return
    known = {*checkpoint.linears, *checkpoint.bf16_linears, *checkpoint.modules}
    known |= values_read_from_keys(checkpoint.modules)
    targets = {target for group in groups.values() for target in group_targets(group)} - LINEAR_CLASSES
    patterns = sorted(target for target in targets if target.startswith("re:"))[:MAX_PATTERNS]
    unmatched = [t for t in patterns if not any(map(matcher(t, COMPRESSED_TENSORS.name), known))]
    unmatched += sorted(target for target in targets - known if not target.startswith("re:"))
    look.count(len(targets))
    for target in unmatched:
        look.wrong(
            f"{SECTION}.config_groups: {printable(target, 80)}", found="matches no module", expected="a linear",
            message=f"{printable(target, 80)} among the targets matches nothing, so what it meant is in another group; "
            "name linears as they are stored",
        )  # fmt: skip
    own = checkpoint.stated_schemes
    in_vllm = stated_schemes(checkpoint.quantization, checkpoint.layout, checkpoint.modules, spelled=_in_vllm)
    for name in checkpoint.modules:
        if own.get(name) is not in_vllm.get(name):
            look.wrong(
                name, found=f"{own.get(name)}, in vLLM {in_vllm.get(name)}", expected="one scheme",
                message=f"a pattern among the targets matches {name} and not {_in_vllm(name)}, as vLLM calls it when "
                "it matches patterns; list names in its place",
            )  # fmt: skip


def _in_vllm(name: str) -> str:
    return f"{_TEXT_IN_VLLM}{name.removeprefix(_TEXT)}" if name.startswith(_TEXT) else name
