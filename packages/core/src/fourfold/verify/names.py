"""Rules about names: none missing, none extra, none that a server would read as something else."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from fourfold.checkpoint.layouts import LAYOUTS
from fourfold.config import Scheme
from fourfold.verify.checkpoint import PARTS, REQUIRED_PARTS
from fourfold.verify.expected import UNLISTED_PREFIXES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fourfold.verify.checkpoint import Checkpoint
    from fourfold.verify.rule import Look
    from fourfold.verify.shards import StoredTensor

_INDEXED = re.compile(r"\.experts\.\d+\.")
#: Spellings that other tools or servers use inside, and the one a checkpoint has.
_SPELLINGS = (
    (re.compile(r"^language_model\.model\."), "model.language_model."),
    (re.compile(r"^model\.model\."), "model."),
    (re.compile(r"\.moe\.experts\."), ".experts."),
    (re.compile(r"\.mlp\.experts\."), ".experts."),
    (re.compile(r"\.experts\.routed_experts\."), ".experts."),
    (re.compile(r"^(vision_tower|embed_vision)\."), r"model.\1."),
    (re.compile(r"\.(w1|w3|w2)(?=\.|$)"), lambda m: {"w1": ".gate_proj", "w3": ".up_proj", "w2": ".down_proj"}[m[1]]),
)


def one_layout(look: Look, checkpoint: Checkpoint) -> None:
    """The suffixes of one layout, and only of one."""
    look.count(len(checkpoint.folder.tensors))
    if len(checkpoint.layouts_seen) > 1:
        found = ", ".join(f"{number} tensors in {name}" for name, number in sorted(checkpoint.layouts_seen.items()))
        look.wrong(
            "(all tensors)", found=found, expected="one layout",
            message="tensors of two layouts are mixed; a server reads one and leaves the other uninitialised",
        )  # fmt: skip
    if not checkpoint.layouts_seen and checkpoint.folder.tensors:
        look.wrong(
            "(all tensors)", found="no NVFP4 scale", expected="modelopt or compressed-tensors",
            message="no tensor is quantized to NVFP4",
        )  # fmt: skip


def parts_complete(look: Look, checkpoint: Checkpoint) -> None:
    """Every quantized module has packed weight, block scale and global scale."""
    look.count(len(checkpoint.modules) * len(REQUIRED_PARTS))
    for module, parts in checkpoint.modules.items():
        for part in REQUIRED_PARTS:
            if part not in parts:
                key = _key(checkpoint, module, part)
                look.wrong(
                    key, found="absent", expected=f"the {part} of {module}",
                    message=f"{key} is missing; vLLM does not notice and computes with uninitialised memory",
                )  # fmt: skip


def input_scales_present(look: Look, checkpoint: Checkpoint) -> None:
    """Every module in W4A4 has an input scale."""
    for module, parts in _in_scheme(checkpoint, Scheme.W4A4):
        look.count()
        if PARTS[3] not in parts:
            key = _key(checkpoint, module, PARTS[3])
            look.wrong(
                key, found="absent", expected="an input scale, as the scheme is W4A4",
                message=f"{key} is missing; it is folded as 1/0 or as uninitialised memory and gives NaN or padding",
            )  # fmt: skip


def input_scales_absent(look: Look, checkpoint: Checkpoint) -> None:
    """No module of weights alone has an input scale."""
    for _, parts in _in_scheme(checkpoint, Scheme.W4A16):
        look.count()
        if PARTS[3] in parts:
            look.wrong(
                parts[PARTS[3]].name, found="an input scale", expected="none, as the scheme is W4A16",
                message=f"{parts[PARTS[3]].name} is left over in a weights-only module; no parameter takes it",
            )  # fmt: skip


def _in_scheme(checkpoint: Checkpoint, scheme: Scheme) -> list[tuple[str, Mapping[str, StoredTensor]]]:
    return [(name, parts) for name, parts in checkpoint.modules.items() if checkpoint.schemes[name] is scheme]


def nothing_missing(look: Look, checkpoint: Checkpoint) -> None:
    """Every tensor that the model keeps is there, and every linear in one form or the other."""
    for name in sorted(checkpoint.kept_names):
        if name.endswith(".layer_scalar") or name == "lm_head.weight":
            continue  # rules of their own
        look.count()
        module = name.removesuffix(".weight")
        if name not in checkpoint.folder.tensors and module not in checkpoint.modules:
            look.wrong(
                name, found="absent", expected="as in the source",
                message=f"{name} is missing; vLLM fills a quantized model's missing tensors with garbage, silently",
            )  # fmt: skip
    for name, linear in checkpoint.linears.items():
        if linear.expert is None:
            look.count()
            if name not in checkpoint.modules and f"{name}.weight" not in checkpoint.folder.tensors:
                look.wrong(
                    name, found="absent", expected="quantized, or kept as in the source",
                    message=f"{name} is missing in any form",
                )  # fmt: skip


def layer_scalars_present(look: Look, checkpoint: Checkpoint) -> None:
    """Every layer has its ``layer_scalar``."""
    for name in sorted(checkpoint.kept_names):
        if name.endswith(".layer_scalar"):
            look.count()
            if name not in checkpoint.folder.tensors:
                look.wrong(
                    name, found="absent", expected="the source's value",
                    message=f"{name} is lost; the residual stream then grows until the logits are NaN",
                )  # fmt: skip


def nothing_extra(look: Look, checkpoint: Checkpoint) -> None:
    """No tensor that the model has no place for."""
    look.count(len(checkpoint.folder.tensors))
    for name in checkpoint.plain:
        if (
            not _known(checkpoint, name)
            and _respelled(checkpoint, name) is None
            and not _out_of_range(checkpoint, name)
        ):
            look.wrong(
                name, found="a tensor of no module", expected="no such tensor",
                message=f"{name} belongs to nothing in this model; a server refuses it or drops it",
            )  # fmt: skip
    for module in checkpoint.modules:
        known = module in checkpoint.linears or f"{module}.weight" in checkpoint.kept_names
        if not known and _respelled(checkpoint, module) is None and not _out_of_range(checkpoint, module):
            look.wrong(
                module, found="a quantized module", expected="no such module",
                message=f"{module} is no module of this model; a server refuses it or drops it",
            )  # fmt: skip


def names_of_the_source(look: Look, checkpoint: Checkpoint) -> None:
    """Names are spelled as in the source model, not as inside some server or toolchain."""
    look.count(len(checkpoint.plain) + len(checkpoint.modules))
    for name in (*checkpoint.plain, *checkpoint.modules):
        right = None if _known(checkpoint, name) else _respelled(checkpoint, name)
        if right is not None:
            look.wrong(
                name, found=name, expected=right,
                message=f"{name} is spelled as inside another tool; servers look for {right}",
            )  # fmt: skip


def head_tied(look: Look, checkpoint: Checkpoint) -> None:
    """``lm_head.weight`` stands exactly when the config does not tie it to the embeddings."""
    config = checkpoint.config
    text = config.get("text_config")
    inner = text.get("tie_word_embeddings", True) if isinstance(text, dict) else True
    tied = bool(config.get("tie_word_embeddings", inner))
    present = "lm_head.weight" in checkpoint.folder.tensors
    look.count()
    if tied and present and "lm_head.weight" not in checkpoint.kept_names:
        look.wrong(
            "lm_head.weight", found="a tensor", expected="none: tie_word_embeddings is true",
            message="lm_head.weight is stored although the config ties it to the embeddings; a server drops it",
        )  # fmt: skip
    if not tied and not present:
        look.wrong(
            "lm_head.weight", found="absent", expected="a tensor: tie_word_embeddings is false",
            message="lm_head.weight was lost (removed as if tied); the output layer would be garbage",
        )  # fmt: skip


def _known(checkpoint: Checkpoint, name: str) -> bool:
    """Whether an unquantized tensor (or quantized module) has a place in the model."""
    if name in checkpoint.kept_names or name in checkpoint.kv_names or name in checkpoint.fused_names:
        return True
    if name.startswith(UNLISTED_PREFIXES) or name == "lm_head.weight":
        return True
    return name.removesuffix(".weight") in checkpoint.linears


def _respelled(checkpoint: Checkpoint, name: str) -> str | None:
    """The model's own name when ``name`` is another tool's spelling of it."""
    respelled = name
    for pattern, right in _SPELLINGS:
        respelled = pattern.sub(right, respelled)
    if respelled == name:
        return None
    modules = (respelled, respelled.removesuffix(".weight"), respelled.rpartition(".")[0])
    known = {respelled, f"{respelled}.weight"} & checkpoint.kept_names or any(m in checkpoint.linears for m in modules)
    return respelled if known else None


def _out_of_range(checkpoint: Checkpoint, name: str) -> bool:
    """An expert too many: a rule of its own."""
    count = checkpoint.gemma.num_experts if checkpoint.gemma else 0
    match = _INDEXED.search(name)
    return match is not None and int(match[0].split(".")[2]) >= count


def _key(checkpoint: Checkpoint, module: str, part: str) -> str:
    layout = checkpoint.layout or LAYOUTS["modelopt"]
    return f"{module}.{getattr(layout, part)}"
