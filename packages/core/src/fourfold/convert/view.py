"""A checkpoint as the artifact that would have given it, so that any exporter writes it in its own layout.

The tensors are read where they stand. What an exporter asks of a manifest comes from the checkpoint's own
``manifest.json``; for a checkpoint of another producer it is derived from tensors and config: the scheme from
the input scales and what the config states of modules without, the KV cache from config and scales, the producer
from config.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections import defaultdict
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fourfold.artifact import BLOCK_SCALE, INPUT_GLOBAL_SCALE, PACKED_WEIGHT, Artifact
from fourfold.checkpoint.canonical import CanonicalFolder
from fourfold.checkpoint.index import read_json
from fourfold.checkpoint.layouts import CANONICAL, MODELOPT
from fourfold.config import KVCache, Recipe, Scheme
from fourfold.errors import CheckpointError
from fourfold.manifest import MANIFEST_FILE, Component, Fate, Manifest, TensorFate
from fourfold.verify.schemes import stated_schemes

if TYPE_CHECKING:
    import torch

HF_QUANT_CONFIG_FILE = "hf_quant_config.json"
_QUANTIZATION_KEYS = ("quantization_config", "compression_config")
_SIGN_BIT, _NAN_BYTE = 0x80, 0x7F


class CheckedFolder(CanonicalFolder):
    """Refuses block scales that no layout can mean: negative, NaN, or zero over codes that are not."""

    def read(self, name: str, slices: tuple[int | slice, ...] | None = None) -> torch.Tensor:
        """See :meth:`CanonicalFolder.read`."""
        tensor = super().read(name, slices)
        if name.endswith(f".{BLOCK_SCALE}") and self.is_part(name):
            self._check_block_scale(name, tensor)
        return tensor

    def _check_block_scale(self, name: str, scale: torch.Tensor) -> None:
        import torch

        from fourfold.nvfp4.tensor import zero_over_codes

        data = scale.view(torch.uint8)
        bad = data >= _NAN_BYTE
        if bool((data == 0).any()):
            packed = super().read(f"{name.removesuffix(BLOCK_SCALE)}{PACKED_WEIGHT}")
            bad |= zero_over_codes(packed, scale)
        if not bool(bad.any()):
            return
        row, block = (int(i) for i in bad.nonzero()[0])
        raise CheckpointError(
            f"{self.path}: {self.stored_name(name)} holds {scale[row, block].item():g} at row {row}, block {block} "
            f"({int(bad.sum())} such); a block scale must be positive, or zero over a block of zeros: quantize "
            "this module again"
        )


class CheckpointView(Artifact):
    """Read-only; ``tensors`` are canonical, ``manifest`` is the checkpoint's own or derived."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.folder = CheckedFolder(self.path)
        self.tensors = self.folder
        self.has_manifest = (self.path / MANIFEST_FILE).is_file()
        self.manifest = Manifest.read(self.path) if self.has_manifest else self._derive_manifest()
        strangers = set(self.folder.modules) ^ set(self.manifest.quantized_modules)
        if strangers:
            name = min(strangers)
            where = "not in the files" if name in self.manifest.quantized_modules else "not in the manifest"
            raise CheckpointError(
                f"{self.path}: {name} is {where} ({len(strangers)} such); {MANIFEST_FILE} is not its own"
            )

    @property
    def source_config(self) -> dict[str, object]:
        """``config.json`` without what its layout added."""
        config: dict[str, object] = json.loads(json.dumps(self.tensors.config))
        return {key: value for key, value in config.items() if key not in _QUANTIZATION_KEYS}

    def _derive_manifest(self) -> Manifest:
        folder = self.folder
        owned = (*CANONICAL.kv_scales,)
        kept = [e.name for e in folder if not folder.is_part(e.name) and e.name.rpartition(".")[2] not in owned]
        producer = self._producer()
        return Manifest(
            kind="checkpoint",
            layout=folder.layout.name,
            source_files={},
            recipe=self._recipe(),
            unfuser=Component(name="unknown"),
            quantizer=Component(name=producer["name"]),
            exporter=None,
            seed=0,
            packages=self._packages(producer),
            tensors={name: TensorFate(fate=Fate.KEPT) for name in kept},
            quantized_modules=folder.modules,
        )

    def _recipe(self) -> Recipe:
        modules = self.folder.modules
        alone = {m for m in modules if f"{m}.{INPUT_GLOBAL_SCALE}" not in self.folder}
        facts: dict[str, object] = {"kv_cache": self._kv_cache(), "scheme": Scheme.W4A16}
        self._require_stated(alone)
        if len(alone) < len(modules):
            facts |= {"scheme": Scheme.W4A4, "weights_only": self._patterns(alone)}
        return Recipe.parse(facts, where=f"{self.path}: recipe")

    def _require_stated(self, alone: set[str]) -> None:
        """A module without an input scale is of weights alone where the config says so, else its scale was lost."""
        blocks, layout = self._quantization(), self.folder.layout
        stated = next(filter(None, (stated_schemes(block, layout, self.folder.modules) for block in blocks)), {})
        if missing := {module for module in alone if stated.get(module) is not Scheme.W4A16}:
            name, number = f"{min(missing)}.{layout.input_global_scale}", len(self.folder.modules)
            having = number - len(alone)
            why = f"{having} of {number} modules have one" if having else "the config does not state W4A16"
            raise CheckpointError(
                f"{self.path}: {name} is missing, though {why}; a server would read it uninitialised: calibrate "
                "this module"
            )

    def _patterns(self, alone: set[str]) -> tuple[str, ...]:
        """As few as name them: all that is quantized of a parent, a layer's experts among them, or one module."""
        parents: dict[str, set[str]] = defaultdict(set)
        for module in self.folder.modules:
            parents[_parent(module)].add(module)
        patterns: list[str] = []
        for parent, modules in parents.items():
            chosen = modules & alone
            if chosen == modules:
                patterns.append(f"{escape(parent)}.*")
            elif chosen and parent.endswith(".experts"):
                raise CheckpointError(
                    f"{self.path}: {min(chosen)} is of weights alone and others of its layer's experts are not; a "
                    "server loads them as one tensor: quantize this layer again"
                )
            else:
                patterns += map(escape, chosen)
        return tuple(sorted(patterns))

    def _quantization(self) -> list[dict[str, Any]]:
        """Every block that describes the quantization: of ``config.json``, and ModelOpt's own file."""
        blocks = [self.tensors.config.get(key) for key in _QUANTIZATION_KEYS]
        path = self.path / HF_QUANT_CONFIG_FILE
        if self.folder.layout is MODELOPT and path.is_file():
            content = read_json(path)
            if isinstance(content, dict):
                blocks += [content.get("quantization"), {"producer": content.get("producer")}]
        return [block for block in blocks if isinstance(block, dict)]

    def _kv_cache(self) -> KVCache:
        found: set[str] = set()
        for block in self._quantization():
            scheme, algorithm = block.get("kv_cache_scheme"), block.get("kv_cache_quant_algo")
            if isinstance(scheme, dict):
                found.add(f"{scheme.get('type')}{scheme.get('num_bits')}")
            elif algorithm:
                found.add({"FP8": "float8"}.get(str(algorithm), str(algorithm)))
        if any(e.name.rpartition(".")[2] in CANONICAL.kv_scales for e in self.folder):
            found.add("float8")
        if found - {"float8"}:
            raise CheckpointError(
                f"{self.path}: KV cache in {', '.join(sorted(found))}; only FP8 is known (or none): convert it without"
            )
        return KVCache.FP8 if found else KVCache.NONE

    def _producer(self) -> dict[str, str]:
        for block in self._quantization():
            producer = block.get("producer")
            if isinstance(producer, dict) and producer.get("name"):
                return {"name": str(producer["name"]), "version": str(producer.get("version", "unknown"))}
        return {"name": "unknown", "version": "unknown"}

    @staticmethod
    def _packages(producer: dict[str, str]) -> dict[str, str]:
        packages = {"fourfold": importlib.metadata.version("fourfold")}
        if producer["name"] == "modelopt":
            packages["nvidia-modelopt"] = producer["version"]
        return packages


def _parent(module: str) -> str:
    """What a module belongs to: attention, the dense MLP, or all experts of a layer."""
    layer, experts, _ = module.partition(".experts.")
    return f"{layer}.experts" if experts else module.rpartition(".")[0]
