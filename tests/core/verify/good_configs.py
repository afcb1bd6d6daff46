"""The configs of the good checkpoints, in the words of ModelOpt 0.47 and llm-compressor 0.14."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from fourfold.artifact import Artifact
from fourfold.checkpoint.layouts import MODELOPT
from fourfold.config import KVCache, Scheme

from .source_model import EXPERTS

if TYPE_CHECKING:
    from .good_checkpoints import Variant

TEXT = "model.language_model.layers"
#: The full-attention layer, which has no v_proj.
KEYS_AS_VALUES = f"{TEXT}.2.self_attn"


def config_files(artifact: Artifact, variant: Variant) -> dict[str, dict[str, Any]]:
    """File name to content."""
    quantized, ignore = set(artifact.manifest.quantized_modules), {"lm_head"}
    for name in artifact.kept():
        module, _, leaf = name.rpartition(".")
        rank = len(artifact.tensors.entry(name).shape)
        if leaf == "weight" and rank == 2 and not module.endswith("embed_tokens"):
            ignore.add(module)
        elif rank == 3 and leaf in ("gate_up_proj", "down_proj"):
            parts = ("gate_proj", "up_proj", "down_proj")
            ignore |= {f"{module}.{e}.{p}" for e in range(EXPERTS) for p in parts}
    ignored = sorted(ignore - quantized)
    if f"{KEYS_AS_VALUES}.k_proj" in ignored:
        # vLLM 0.32 builds q, k and v as one linear and refuses it when it finds only two of them ignored.
        ignored = sorted([*ignored, f"{KEYS_AS_VALUES}.v_proj"])
    fp8, w4a4 = variant.kv_cache is KVCache.FP8, variant.scheme is Scheme.W4A4
    four_bit: dict[str, Any] = {"dynamic": False, "num_bits": 4, "type": "float", "group_size": 16}
    if variant.layout == MODELOPT.name:
        patterns = sorted({_modelopt_pattern(name, quantized) for name in ignored})
        group = {"weights": four_bit, "targets": ["Linear"]} | ({"input_activations": four_bit} if w4a4 else {})
        producer = {"name": "modelopt", "version": "0.47.0"}
        algorithm = "NVFP4" if w4a4 else "W4A16_NVFP4"
        section: dict[str, Any] = {
            "config_groups": {"group_0": group}, "ignore": patterns, "quant_algo": algorithm, "producer": producer,
            "quant_method": "modelopt",
        }  # fmt: skip
        if fp8:
            section["kv_cache_scheme"] = {"dynamic": False, "num_bits": 8, "type": "float"}
        facts = {
            "quant_algo": algorithm, "kv_cache_quant_algo": "FP8" if fp8 else None, "group_size": 16,
            "exclude_modules": patterns,
        }  # fmt: skip
        if variant.weights_only:
            _mix_modelopt(section, facts, sorted(quantized), variant.weights_only)
        hf = {"producer": producer, "quantization": facts}
        return {
            "config.json": artifact.source_config | {"quantization_config": section},
            "hf_quant_config.json": hf,
        }
    arguments = four_bit | {"strategy": "tensor_group", "symmetric": True}
    group = {
        "format": "nvfp4-pack-quantized", "targets": ["Linear"], "weights": arguments, "output_activations": None,
        "input_activations": arguments | {"dynamic": "local"} if w4a4 else None,
    }  # fmt: skip
    groups = {"group_0": group}
    if variant.weights_only:
        alone = [name for name in quantized if any(fnmatchcase(name, pattern) for pattern in variant.weights_only)]
        # As for the list of ignored modules: q, k and v are one linear.
        values = [f"{KEYS_AS_VALUES}.v_proj"] if f"{KEYS_AS_VALUES}.k_proj" in alone else []
        groups["group_1"] = group | {"targets": sorted([*alone, *values]), "input_activations": None}
    section = {
        "config_groups": groups, "format": "nvfp4-pack-quantized", "ignore": ignored,
        "kv_cache_scheme": {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False} if fp8 else None,
        "quant_method": "compressed-tensors", "quantization_status": "compressed", "version": "0.19.0",
    }  # fmt: skip
    return {"config.json": artifact.source_config | {"quantization_config": section}}


def _mix_modelopt(
    section: dict[str, Any], facts: dict[str, Any], quantized: list[str], weights_only: tuple[str, ...]
) -> None:
    """ModelOpt's MIXED_PRECISION: each module's algorithm by name, and a config group an algorithm."""
    alone = {name for name in quantized if any(fnmatchcase(name, pattern) for pattern in weights_only)}
    weights = section["config_groups"]["group_0"]["weights"]
    section["config_groups"] = {
        "group_0": {"weights": weights, "targets": sorted(alone)},
        "group_1": {"weights": weights, "input_activations": weights, "targets": sorted({*quantized} - alone)},
    }
    for place in (section, facts):
        place["quant_algo"] = "MIXED_PRECISION"
        place["quantized_layers"] = {
            name: {"quant_algo": "W4A16_NVFP4" if name in alone else "NVFP4", "group_size": 16} for name in quantized
        }


def _modelopt_pattern(name: str, quantized: set[str]) -> str:
    """ModelOpt's list: ``prefix*`` where nothing under the prefix is quantized."""
    for part in ("router", "experts", "self_attn", "mlp"):
        if f".{part}." in name and name.startswith(TEXT):
            prefix = f"{name.split(f'.{part}.')[0]}.{part}"
            return name if any(module.startswith(f"{prefix}.") for module in quantized) else f"{prefix}*"
    return ".".join(name.split(".")[:2]) + "*" if name.startswith("model.") else name
