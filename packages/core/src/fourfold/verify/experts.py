"""Rules about which modules are quantized: every expert of every layer, and never what routes or sees."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import TYPE_CHECKING

from fourfold.checkpoint.layouts import MODELOPT
from fourfold.models.gemma4 import ModuleKind
from fourfold.verify.patterns import PatternList, bounded, covered

if TYPE_CHECKING:
    from fourfold.models.gemma4 import LinearModule
    from fourfold.verify.checkpoint import Checkpoint
    from fourfold.verify.rule import Look

_NEVER = re.compile(
    r"(^|\.)(router|vision_tower|embed_vision|audio_tower|embed_audio|embed_tokens|lm_head|\w*norm\w*)(\.|$)"
)
_EXPERT_INDEX = re.compile(r"\.experts\.(\d+)\.")


def all_experts_quantized(look: Look, checkpoint: Checkpoint) -> None:
    """Layers x experts x 3 matrices, less the layers that config (and manifest) leave whole in BF16 on purpose; all of
    them are so only where a manifest's recipe says it.
    """
    absent: dict[int, list[str]] = defaultdict(list)
    expected = 0
    for layer, members in checkpoint.expert_layers.items():
        if _left_whole(checkpoint, members):
            continue
        expected += len(members)
        absent[layer] += [m.name for m in members if not _stored(checkpoint, m.name)]
        if len(absent[layer]) == len(members):
            absent.pop(layer)  # the whole layer is missing: every_layer_quantized says so
    look.count(expected)
    for layer, names in absent.items():
        for name in names:
            look.wrong(
                name, found="no tensor", expected=f"{expected} expert matrices in NVFP4",
                message=f"{name} is missing; layer {layer} lacks {len(names)} expert matrices",
            )  # fmt: skip
    if checkpoint.expert_layers and not expected and not _left_by_recipe(checkpoint):
        total = sum(map(len, checkpoint.expert_layers.values()))
        look.wrong(
            "config.json: quantization_config.ignore", found="every expert layer is left in BF16",
            expected=f"{total} expert matrices in NVFP4",
            message="no expert is quantized: the quantizer walked past the fused experts",
        )  # fmt: skip


def no_expert_left(look: Look, checkpoint: Checkpoint) -> None:
    """Within a layer all experts are quantized, or none."""
    for layer, members in checkpoint.expert_layers.items():
        look.count(len(members))
        left = [m.name for m in members if m.name not in checkpoint.modules and f"{m.name}.weight" in checkpoint.plain]
        if len(left) == len(members):
            continue
        for name in left:
            look.wrong(
                f"{name}.weight", found=checkpoint.plain[f"{name}.weight"].dtype, expected="NVFP4",
                message=f"{name} was left unquantized while {len(members) - len(left)} matrices of layer {layer} are "
                "NVFP4; a server loads a layer's experts in one format",
            )  # fmt: skip


def every_layer_quantized(look: Look, checkpoint: Checkpoint) -> None:
    """No layer's experts are missing as a whole, or in BF16 without being ignored."""
    for layer, members in checkpoint.expert_layers.items():
        look.count()
        if any(m.name in checkpoint.modules for m in members) or _left_whole(checkpoint, members):
            continue
        stored = [m for m in members if _stored(checkpoint, m.name)]
        fused = [name for name in {m.tensor for m in members} if name in checkpoint.plain]
        if stored and not all(f"{m.name}.weight" in checkpoint.plain for m in stored):
            continue
        found = "unquantized" if stored or fused else "no tensor"
        look.wrong(
            members[0].tensor.rpartition(".")[0], found=found, expected=f"{len(members)} expert matrices in NVFP4",
            message=f"layer {layer} was skipped: its experts are {found} and the ignore list does not say so",
        )  # fmt: skip


def expert_index_in_range(look: Look, checkpoint: Checkpoint) -> None:
    """No expert number at or over the model's count; vLLM drops such tensors without a word."""
    count = checkpoint.gemma.num_experts if checkpoint.gemma else 0
    for name in checkpoint.folder.tensors:
        match = _EXPERT_INDEX.search(name)
        if match:
            look.count()
            if int(match[1]) >= count:
                look.wrong(
                    name, found=f"expert {match[1]}", expected=f"0 to {count - 1}",
                    message=f"{name}: the model has {count} experts a layer; a server drops this tensor",
                )  # fmt: skip


def never_quantized(look: Look, checkpoint: Checkpoint) -> None:
    """Router, vision, audio, embeddings, norms and ``lm_head`` are in the model's own precision."""
    look.count(len(checkpoint.plain) + len(checkpoint.modules))
    for name in checkpoint.modules:
        if _NEVER.search(name) and name not in checkpoint.linears:
            look.wrong(
                name, found="NVFP4", expected="as in the source",
                message=f"{name} is quantized; servers build it unquantized, and routing or vision would break",
            )  # fmt: skip


def fused_alike(look: Look, checkpoint: Checkpoint) -> None:
    """Linears that a server fuses (q, k, v; gate, up) are all quantized or all not."""
    groups: dict[str, list[LinearModule]] = defaultdict(list)
    for module in checkpoint.linears.values():
        if module.kind is not ModuleKind.EXPERT:
            groups[module.scale_group].append(module)
    for group, members in groups.items():
        look.count()
        quantized = [m.name for m in members if m.name in checkpoint.modules]
        if quantized and len(quantized) < len(members):
            rest = ", ".join(m.projection for m in members if m.name not in quantized)
            look.wrong(
                group, found=f"{rest} unquantized, the others NVFP4", expected="all or none",
                message=f"{group}: a server fuses these linears and refuses one of them in another format",
            )  # fmt: skip


def stored_in_one_form(look: Look, checkpoint: Checkpoint) -> None:
    """No weight stands both quantized and unquantized."""
    look.count(len(checkpoint.modules))
    for name in checkpoint.modules:
        plain = f"{name}.weight"
        if plain in checkpoint.plain:
            look.wrong(
                plain, found="unquantized and NVFP4", expected="one form",
                message=f"{name} is stored twice, quantized and not; a server loads one over the other",
            )  # fmt: skip
    for tensor in sorted(checkpoint.fused_names & checkpoint.plain.keys()):
        stem = tensor.rpartition(".")[0]
        if any(name.startswith(f"{stem}.") for name in checkpoint.modules):
            look.wrong(
                tensor, found="fused experts beside quantized ones", expected="one form",
                message=f"{tensor} is stored beside the experts it was quantized into; remove it",
            )  # fmt: skip


def _stored(checkpoint: Checkpoint, name: str) -> bool:
    return name in checkpoint.modules or f"{name}.weight" in checkpoint.plain


def _left_by_recipe(checkpoint: Checkpoint) -> bool:
    """Whether a manifest's recipe leaves out every layer's experts, by its patterns."""
    if checkpoint.manifest is None:
        return False
    recipe, kind = checkpoint.manifest.recipe, MODELOPT.name  # the layout whose patterns are shell wildcards, as these
    heads = [str(m.name) for members in checkpoint.expert_layers.values() for m in members if m.expert == 0]
    included, excluded = (
        {name for pattern in bounded(patterns, kind) for name in covered(pattern, kind, heads)}
        for patterns in (recipe.include, recipe.all_excludes)
    )
    return included.isdisjoint(set(heads) - excluded)


def _left_whole(checkpoint: Checkpoint, members: list[LinearModule]) -> bool:
    """Whether a layer's experts stay BF16 on purpose: ignored by the config, and by the manifest when there is one."""
    if any(m.name in checkpoint.modules for m in members) or checkpoint.layout is None:
        return False
    if checkpoint.manifest and any(m.name in checkpoint.manifest.quantized_modules for m in members):
        return False
    patterns = PatternList(checkpoint.ignore_patterns(), checkpoint.layout)
    fused = all(tensor in checkpoint.plain for tensor in {m.tensor for m in members})
    stored = fused or all(f"{m.name}.weight" in checkpoint.plain for m in members)
    heads = [m for m in members if m.expert == 0]
    return stored and all(patterns.match(m.name) for m in heads)
