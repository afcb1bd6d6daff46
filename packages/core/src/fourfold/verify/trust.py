"""Rules about what a loader would be made to do besides loading weights: run code, load another model, transform."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from fourfold.checkpoint.index import CONFIG_FILE
from fourfold.verify.config import SECTION

if TYPE_CHECKING:
    from fourfold.verify.checkpoint import Checkpoint
    from fourfold.verify.rule import Look

_CODE = (".py", ".pyc", ".so", ".sh", ".js", ".dll", ".dylib", ".whl")
#: Keys by which transformers finds code in, or for, a model; looked for at any depth of every config.
_CODE_KEYS = ("auto_map", "trust_remote_code", "custom_pipelines", "custom_generate")
#: With a slash in its value, transformers takes the attention's code from a hub repository of that name.
_KERNEL_KEYS = ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation")
_CONFIGS = (
    CONFIG_FILE, "generation_config.json", "tokenizer_config.json", "processor_config.json",
    "preprocessor_config.json", "video_preprocessor_config.json",
)  # fmt: skip
_ADAPTERS = ("adapter_config.json", "adapter_model.safetensors")


def no_code(look: Look, checkpoint: Checkpoint) -> None:
    """No code beside the weights, and no config key that asks a loader to run some."""
    look.count(len(checkpoint.folder.files))
    for name in checkpoint.folder.files:
        if name.lower().endswith(_CODE):
            look.wrong(
                name, found="code", expected="no code", message=f"{name}: Gemma 4 needs no remote code; remove it"
            )
    for file in _CONFIGS:
        content = checkpoint.config if file == CONFIG_FILE else checkpoint.content(file)
        for key, value in _leaves(content):
            leaf = key.rpartition(".")[2]
            from_hub = leaf in _KERNEL_KEYS and isinstance(value, str) and "/" in value
            if (leaf in _CODE_KEYS and value) or from_hub:
                look.wrong(
                    f"{file}: {key}", found=value, expected="absent",
                    message=f"{file}: {key} asks loaders to run code from the checkpoint or the hub; remove it",
                )  # fmt: skip


def nothing_in_its_place(look: Look, checkpoint: Checkpoint) -> None:
    """No adapter beside the weights."""
    look.count(len(checkpoint.folder.files))
    for name in checkpoint.folder.files:
        if name in _ADAPTERS:
            look.wrong(
                name, found="an adapter", expected="no such file",
                message=f"{name}: loaders that know adapters load the model it names, and not this one; remove it",
            )  # fmt: skip


def nothing_further(look: Look, checkpoint: Checkpoint) -> None:
    """No transform and no sparsity beside NVFP4, and one description of the quantization."""
    look.count()
    section = checkpoint.quantization
    for key in ("transform_config", "sparsity_config"):
        if _means_something(section.get(key)):
            look.wrong(
                f"{SECTION}.{key}", found=section[key], expected="absent, or empty",
                message=f"{key} makes servers change weights or activations in a way these tensors were not made for",
            )  # fmt: skip
    for outer in ("", "text_config", "vision_config"):
        inner = checkpoint.config.get(outer, {}) if outer else checkpoint.config
        for key in ("quantization_config", "compression_config"):
            path = f"{outer}.{key}".lstrip(".")
            if isinstance(inner, Mapping) and inner.get(key) and path != "quantization_config":
                look.wrong(
                    f"{CONFIG_FILE}: {path}", found=inner[key], expected="quantization_config alone",
                    message=f"config.json describes the quantization again, in {path}; servers read one of them",
                )  # fmt: skip


def _means_something(section: object) -> bool:
    if isinstance(section, Mapping):
        stated = {key: value for key, value in section.items() if value not in (None, {}, [], "", 0, 0.0, "0:0")}
        return bool(stated) and stated.get("format") != "dense" and stated.keys() != {"registry_requires_subclass"}
    return bool(section)


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of every entry of every object, outer ones first."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield f"{prefix}{key}", inner
            yield from _leaves(inner, f"{prefix}{key}.")
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner, prefix)
