"""The ``compressed-tensors`` layout: an artifact to the checkpoint that llm-compressor itself would save.

Tensor names, dtypes, shapes and bytes are those of ``save_pretrained(save_compressed=True)``: packed weights
and block scales as they are, global scales as divisors ([1], float32), so that decode divides by them. The
config differs in two ways, on purpose: ``targets`` is ``["Linear"]``, with every linear that stayed BF16 in
``ignore``, and ``ignore`` names linears only. Modules of a W4A4 recipe that are in W4A16 form a group of their own, by
name: every reader looks for a module's name before its class.

Runs without the toolchain.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fourfold.checkpoint.layouts import COMPRESSED_TENSORS
from fourfold.config import KVCache, Options, Scheme
from fourfold.export import write_checkpoint
from fourfold.interfaces.exporter import Exporter
from fourfold.models.gemma4 import values_read_from_keys
from fourfold.models.gemma4_kept import unquantized_linears

if TYPE_CHECKING:
    from fourfold.artifact import Artifact
    from fourfold.progress import Progress

FORMAT = "nvfp4-pack-quantized"
#: The compressed-tensors release whose config this is.
CONFIG_VERSION = "0.19.0"

#: Fields that every quantized tensor shares.
_ARGUMENTS: dict[str, Any] = {
    "actorder": None,
    "block_structure": None,
    # Which observer found the scales is the manifest's to say: the artifact may come from another toolchain.
    "observer": None,
    "observer_kwargs": {},
    "symmetric": True,
    "type": "float",
    "zp_dtype": None,
}
_NVFP4 = _ARGUMENTS | {
    "group_size": 16,
    "num_bits": 4,
    "scale_dtype": "torch.float8_e4m3fn",
    "strategy": "tensor_group",
}
_WEIGHTS = _NVFP4 | {"dynamic": False}
_INPUTS = _NVFP4 | {"dynamic": "local"}
_FP8_KV = _ARGUMENTS | {
    "dynamic": False,
    "group_size": None,
    "num_bits": 8,
    "scale_dtype": None,
    "strategy": "tensor",
}


class CompressedTensorsExporter(Exporter[Options]):
    """Writes ``weight_packed``, ``weight_scale``, ``weight_global_scale`` and ``input_global_scale``."""

    def export(self, artifact: Artifact, destination: Path, progress: Progress) -> None:
        """Write the checkpoint; see :class:`fourfold.interfaces.exporter.Exporter`."""
        config = artifact.source_config | {"quantization_config": quantization_config(artifact)}
        write_checkpoint(artifact, destination, COMPRESSED_TENSORS, {"config.json": config}, progress)


def quantization_config(artifact: Artifact) -> dict[str, Any]:
    """``quantization_config`` of ``config.json``."""
    recipe = artifact.manifest.recipe
    groups = [_group(recipe.scheme, ["Linear"])]
    if recipe.weights_only:
        alone = {n for n in artifact.manifest.quantized_modules if recipe.scheme_of(n) is Scheme.W4A16}
        groups.insert(0, _group(Scheme.W4A16, sorted(alone | values_read_from_keys(alone))))
    return {
        "config_groups": {f"group_{index}": group for index, group in enumerate(groups)},
        "format": FORMAT,
        "global_compression_ratio": None,
        "ignore": unquantized_linears(artifact.kept_shapes()),
        "kv_cache_scheme": _FP8_KV if recipe.kv_cache is KVCache.FP8 else None,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "sparsity_config": {},
        "transform_config": {},
        "version": CONFIG_VERSION,
    }


def _group(scheme: Scheme, targets: list[str]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "input_activations": _INPUTS if scheme is Scheme.W4A4 else None,
        "output_activations": None,
        "targets": targets,
        "weights": _WEIGHTS,
    }
