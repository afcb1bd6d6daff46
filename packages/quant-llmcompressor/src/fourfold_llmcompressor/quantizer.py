"""The llm-compressor quantizer: load, un-fuse, run the algorithm, settle rare experts, hand over module by
module.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from fourfold.config import KVCache, Scheme
from fourfold.errors import ConfigError, QuantizationError
from fourfold.interfaces.quantizer import QuantizeJob, Quantizer
from fourfold_llmcompressor.calibrate import calibrate, show_all_experts, smooth_pairs
from fourfold_llmcompressor.harvest import HarvestedWeight, harvest
from fourfold_llmcompressor.model import load_model
from fourfold_llmcompressor.options import SEQUENTIAL, SMOOTHING, LlmcompressorOptions
from fourfold_llmcompressor.rare import RareExperts, requantize_nearest

if TYPE_CHECKING:
    from torch import nn

    from fourfold.artifact import ArtifactWriter
    from fourfold.models.gemma4 import LinearModule
    from fourfold.progress import Progress


class LlmcompressorQuantizer(Quantizer[LlmcompressorOptions]):
    """Quantizes with llm-compressor's modifiers; see :class:`LlmcompressorOptions` for the algorithms."""

    def quantize(self, job: QuantizeJob, artifact: ArtifactWriter, progress: Progress) -> None:
        """See :class:`fourfold.interfaces.quantizer.Quantizer`."""
        check_job(job, self.options)
        torch.manual_seed(job.seed)
        progress.begin("load", total=None, unit="model")
        model = load_model(job.model_path, job.device)
        job.unfuser.unfuse(model)
        shows_all = show_all_experts(model, self.options)
        seen = calibrate(model, job, self.options, progress)
        for layer, counts in seen.counts.items():
            artifact.record_expert_tokens(layer, counts)
        for text in seen.warnings:
            artifact.note(text)
            progress.note(text)
        divisors = _input_divisors(model, job)
        rare = None
        if seen.counts and not shows_all:
            rare = RareExperts(job, self.options, seen.counts, divisors)
            divisors |= rare.divisors
            if self.options.algorithm == "gptq":
                requantize_nearest(model, job, rare.experts)
        self._write(model, job, artifact, progress, divisors, rare)
        if job.recipe.kv_cache is KVCache.FP8:
            _write_kv_scales(model, job, artifact)

    def _write(
        self,
        model: nn.Module,
        job: QuantizeJob,
        artifact: ArtifactWriter,
        progress: Progress,
        divisors: dict[str, torch.Tensor],
        rare: RareExperts | None,
    ) -> None:
        pairs = smooth_pairs(job) if self.options.algorithm in SMOOTHING else {}
        smoothed = {*pairs, *pairs.values()}
        shared: dict[str, torch.Tensor] = {}
        progress.begin("harvest", total=len(job.targets), unit="module")
        for module in job.targets:
            linear: Any = model.get_submodule(module.name)
            divisor = divisors.get(module.name)
            result = harvest(linear)
            _add(artifact, module, result, divisor)
            _require_shared(shared, module, result.encode_scale, divisor)
            _record_ones(artifact, module, weights=result.encode_scale, inputs=divisor)
            if rare is not None:
                rare.record(artifact, module)
            if module.name in smoothed and not torch.equal(linear.weight.cpu(), module.read(job.source)):
                artifact.record_transformed(module.name, f"{self.options.algorithm}: up_proj rows, down_proj columns")
            progress.advance()


def check_job(job: QuantizeJob, options: LlmcompressorOptions) -> None:
    """Refuse, before the model is loaded, what would fail after hours. Raises :class:`ConfigError`."""
    recipe = job.recipe
    reads_tokens = recipe.scheme is Scheme.W4A4 or recipe.kv_cache is KVCache.FP8 or options.needs_tokens
    if reads_tokens and job.tokens is None:
        raise ConfigError(f"calibration: {options.algorithm} for {recipe.scheme} needs tokens, and none were given")
    if job.tokens is not None and job.tokens.media is not None and options.algorithm in SEQUENTIAL:
        # Its pipeline runs every batch through the graph traced with the first one, which may have no picture.
        raise ConfigError(
            f"quantizer.algorithm: {options.algorithm} would pass by the pictures of calibration rows; "
            "use --quantizer reference, or calibrate on text"
        )
    if options.algorithm == "smoothquant" and job.unfuser_name == "llmcompressor":
        raise ConfigError(
            "unfuser: smoothquant fails on the experts of unfuser llmcompressor, called without tokens too; "
            "choose reference"
        )
    if options.algorithm in SMOOTHING and not smooth_pairs(job):
        raise ConfigError(
            f"recipe: {options.algorithm} scales up_proj against down_proj, and no such pair is a target; "
            "include both, or choose another algorithm"
        )


def _input_divisors(model: nn.Module, job: QuantizeJob) -> dict[str, torch.Tensor]:
    """llm-compressor's activation divisor of every target in W4A4, float32 []; NaN where it observed nothing."""
    divisors: dict[str, torch.Tensor] = {}
    for module in job.targets:
        if job.recipe.scheme_of(module.name) is Scheme.W4A16:
            continue
        linear: Any = model.get_submodule(module.name)
        divisors[str(module.name)] = linear.input_global_scale.detach().cpu().reshape(())
    return divisors


def _require_shared(shared: dict[str, torch.Tensor], module: LinearModule, *divisors: torch.Tensor | None) -> None:
    """Refuse a scale group whose members have divisors of their own: a server would use one for all."""
    found = torch.stack([divisor for divisor in divisors if divisor is not None])
    if not torch.equal(shared.setdefault(module.scale_group, found), found):
        raise QuantizationError(
            f"{module.name}: llm-compressor gave it other scales than the rest of {module.scale_group}, "
            "which a server fuses; choose another algorithm or unfuser"
        )


def _add(artifact: ArtifactWriter, module: LinearModule, result: HarvestedWeight, divisor: torch.Tensor | None) -> None:
    if not torch.isfinite(result.encode_scale):
        raise QuantizationError(f"{module.name}: llm-compressor left its weight unquantized")
    if divisor is not None and not torch.isfinite(divisor):
        raise QuantizationError(f"{module.name}: llm-compressor observed no input of it; give more samples")
    artifact.add_weight(
        module,
        result.weight,
        None if divisor is None else divisor.reciprocal(),
        encode_scale=result.encode_scale,
        input_encode_scale=divisor,
    )


def _record_ones(artifact: ArtifactWriter, module: LinearModule, **divisors: torch.Tensor | None) -> None:
    """Name the scales of 1 that llm-compressor stores where it saw zeros only."""
    for what, divisor in divisors.items():
        if divisor is not None and divisor == 1:
            artifact.record_fallback(
                module.name, "scale-one", f"the largest of its {what} is 0 (or 2688, which gives the same)"
            )


def _write_kv_scales(model: nn.Module, job: QuantizeJob, artifact: ArtifactWriter) -> None:
    names = {m.name.rpartition(".")[0] for m in job.gemma.linears.values() if m.projection == "k_proj"}
    for name in sorted(names):
        attention: Any = model.get_submodule(name)
        artifact.add_kv_scales(name, attention.k_scale, attention.v_scale)
