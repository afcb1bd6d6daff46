"""A quantizer, an unfuser and an exporter that keep every promise, and one class a broken promise."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fourfold.config import KVCache, RareExpertRule, Scheme
from fourfold.errors import ConfigError, ModelError, QuantizationError
from fourfold.interfaces.quantizer import Quantizer
from fourfold.nvfp4 import NVFP4Weight, global_scale_from_amax, quantize
from fourfold.reference.experts import UnfusedExperts
from fourfold.reference.unfuser import ReferenceUnfuser
from fourfold_modelopt.exporter import ModelOptExporter


class SoundQuantizer(Quantizer):
    """Both schemes; pretends that expert 0 of a layer saw all tokens but one for each of the others."""

    def quantize(self, job, artifact, progress) -> None:
        groups = defaultdict(list)
        for module in job.targets:
            groups[self.group(module)].append(module)
        for members in groups.values():
            weights = [module.read(job.source).float() for module in members]
            scale = global_scale_from_amax(torch.stack([w.abs().amax() for w in weights]).amax())
            for module, weight in zip(members, weights, strict=True):
                input_scale = self.input_scale() if self.scheme(job.recipe, module) is Scheme.W4A4 else None
                artifact.add_weight(module, self.finish(quantize(weight, global_scale=scale)), input_scale)
        if job.recipe.scheme is Scheme.W4A4:
            self.coverage(job, artifact)
        if job.recipe.kv_cache is KVCache.FP8:
            self.kv_scales(job, artifact)

    def kv_scales(self, job, artifact) -> None:
        for module in job.gemma.linears.values():
            if module.projection == "k_proj":
                artifact.add_kv_scales(module.name.rpartition(".")[0], 0.01, 0.01)

    def scheme(self, recipe, module) -> Scheme:
        return recipe.scheme_of(module.name)

    def group(self, module) -> str:
        return module.scale_group

    def finish(self, weight: NVFP4Weight) -> NVFP4Weight:
        return weight

    def input_scale(self) -> float:
        return 0.01

    def counts(self, job) -> list[int]:
        routed = job.tokens.num_tokens * job.gemma.experts_per_token
        return [routed - job.gemma.num_experts + 1] + [1] * (job.gemma.num_experts - 1)

    def coverage(self, job, artifact) -> None:
        for layer in range(job.gemma.num_layers):
            counts = self.counts(job)
            artifact.record_expert_tokens(layer, counts)
            for expert, count in enumerate(counts):
                if count < job.recipe.min_expert_tokens:
                    self.rare(job, artifact, f"{job.gemma.experts_module(layer)}.{expert}")

    def rare(self, job, artifact, expert: str) -> None:
        if job.recipe.rare_experts is RareExpertRule.ERROR:
            raise QuantizationError(f"expert {expert} saw too few tokens")
        artifact.record_fallback(f"{expert}.down_proj", "layer-max", "a test's")


class RefusesLate(SoundQuantizer):
    def quantize(self, job, artifact, progress) -> None:
        raise ConfigError("this scheme is not for me")


class NoKvScales(SoundQuantizer):
    def kv_scales(self, job, artifact):
        pass


class LeavesOneOut(SoundQuantizer):
    def quantize(self, job, artifact, progress) -> None:
        if job.recipe.targets == "experts-only":
            return
        super().quantize(job, artifact, progress)


class NanBlockScale(SoundQuantizer):
    def finish(self, weight):
        block = weight.block_scale.float()
        block[0, 0] = float("nan")
        return NVFP4Weight(weight.packed_weight, block.to(torch.float8_e4m3fn), weight.global_scale)


class ZeroBlockScale(SoundQuantizer):
    def finish(self, weight):
        block = weight.block_scale.float()
        block[0, 0] = 0
        return NVFP4Weight(weight.packed_weight, block.to(torch.float8_e4m3fn), weight.global_scale)


class OwnScales(SoundQuantizer):
    def group(self, module):
        return module.name


class OneScheme(SoundQuantizer):
    def scheme(self, recipe, module) -> Scheme:
        return recipe.scheme


class WrongSigns(SoundQuantizer):
    def finish(self, weight):
        return NVFP4Weight(weight.packed_weight ^ 0x88, weight.block_scale, weight.global_scale)


class Unseeded(SoundQuantizer):
    def input_scale(self):
        return 0.01 + int.from_bytes(os.urandom(2)) / 2**20


class CountsTooFew(SoundQuantizer):
    def counts(self, job):
        return [1] * job.gemma.num_experts


class CountsNothing(SoundQuantizer):
    def coverage(self, job, artifact):
        pass


class HidesRare(SoundQuantizer):
    def rare(self, job, artifact, expert):
        if job.recipe.rare_experts is RareExpertRule.ERROR:
            super().rare(job, artifact, expert)


class IgnoresErrorRule(SoundQuantizer):
    def rare(self, job, artifact, expert):
        artifact.record_fallback(f"{expert}.down_proj", "layer-max", "a test's")


class NoQuantizer:
    def __init__(self, options: object) -> None:
        self.options = options


class SwapsGateAndUp(ReferenceUnfuser):
    def unfuse(self, model: nn.Module) -> None:
        super().unfuse(model)
        for module in model.modules():
            if isinstance(module, UnfusedExperts):
                for expert in module.children():
                    expert.gate_proj, expert.up_proj = expert.up_proj, expert.gate_proj


class NeverFuses(ReferenceUnfuser):
    def fuse(self, model: nn.Module) -> None:
        pass


class ForgetsChanges(ReferenceUnfuser):
    """Its linears are copies, and ``fuse`` puts the untouched tensors back."""

    def unfuse(self, model: nn.Module) -> None:
        super().unfuse(model)
        for module in model.modules():
            if isinstance(module, UnfusedExperts):
                for _, _, linear in module.linears():
                    linear.weight = nn.Parameter(linear.weight.detach().clone())

    def fuse(self, model: nn.Module) -> None:
        for name, module in list(model.named_modules()):
            if isinstance(module, UnfusedExperts):
                model.set_submodule(name, module.fused.module)


class TakesStrangers(ReferenceUnfuser):
    def unfuse(self, model: nn.Module) -> None:
        try:
            super().unfuse(model)
        except ModelError:
            return


class SoundExporter(ModelOptExporter):
    def export(self, artifact, destination, progress) -> None:
        super().export(artifact, destination, progress)
        for path in destination.glob("*.safetensors"):
            tensors = load_file(path)
            self.change(tensors)
            save_file(tensors, path, metadata={"format": "pt"})
        path = destination / "config.json"
        config = json.loads(path.read_text())
        self.change_config(config)
        path.write_text(json.dumps(config))
        self.after(artifact, destination)

    def change(self, tensors: dict[str, torch.Tensor]) -> None:
        pass

    def change_config(self, config: dict[str, Any]) -> None:
        pass

    def after(self, artifact, destination) -> None:
        pass


class ChangesNorm(SoundExporter):
    def change(self, tensors):
        name = next(name for name in tensors if "norm" in name)
        tensors[name] = tensors[name] + 1


class LosesNorm(SoundExporter):
    def change(self, tensors):
        del tensors[next(name for name in tensors if "norm" in name)]


class ChangesCode(SoundExporter):
    def change(self, tensors):
        name = next(name for name, value in tensors.items() if value.dtype is torch.uint8)
        tensors[name][0, 0] ^= 1


class ChangesBlockScale(SoundExporter):
    def change(self, tensors):
        name = next(name for name, value in tensors.items() if value.dtype is torch.float8_e4m3fn)
        tensors[name] = (tensors[name].float() * 2).to(torch.float8_e4m3fn)


class DoublesGlobalScale(SoundExporter):
    def change(self, tensors):
        name = next(name for name in tensors if name.endswith(".weight_scale_2"))
        tensors[name] = tensors[name] * 2


class EmptiesIgnore(SoundExporter):
    def change_config(self, config):
        config["quantization_config"]["ignore"] = []


class LosesTokenizer(SoundExporter):
    def after(self, artifact, destination):
        (destination / "tokenizer.json").unlink()


class LosesConfigKey(SoundExporter):
    def change_config(self, config):
        del config["architectures"]


class WritesIntoArtifact(SoundExporter):
    def after(self, artifact, destination):
        (artifact.path / "cache.json").write_text("{}")


class MakesFolder(SoundExporter):
    def after(self, artifact, destination):
        (destination / "extra").mkdir()


class StampsTime(SoundExporter):
    def change_config(self, config):
        config["quantization_config"]["run"] = os.urandom(4).hex()
