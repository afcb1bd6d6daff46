"""The quantizer ``modelopt``: load, convert, calibrate, search, share scales, write."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import modelopt.torch.quantization as mtq
import torch

from fourfold.config import KVCache
from fourfold.errors import ConfigError
from fourfold.interfaces.quantizer import QuantizeJob, Quantizer
from fourfold_modelopt import algorithms, cpu_backend
from fourfold_modelopt.coverage import apply_rare_rule, record_weights_without_inputs
from fourfold_modelopt.groups import share_scales
from fourfold_modelopt.harvest import attention_modules, write_kv_scales, write_weights
from fourfold_modelopt.linears import QuantizedLinear, enable, find_linears
from fourfold_modelopt.loading import load_model
from fourfold_modelopt.options import ModelOptOptions
from fourfold_modelopt.passes import CalibrationPasses
from fourfold_modelopt.search import LocalHessians, search_block_scales

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from fourfold.artifact import ArtifactWriter
    from fourfold.progress import Progress

#: ModelOpt converts the whole model and quantizes nothing yet: the targets are switched on one by one.
_ALL_OFF = {"quant_cfg": [{"quantizer_name": "*", "enable": False}], "algorithm": None}


class ModelOptQuantizer(Quantizer[ModelOptOptions]):
    """Quantizes with NVIDIA ModelOpt, on a CPU, one GPU, or several through accelerate's device map."""

    def quantize(self, job: QuantizeJob, artifact: ArtifactWriter, progress: Progress) -> None:
        """See :class:`fourfold.interfaces.quantizer.Quantizer`."""
        self._check(job)
        torch.manual_seed(job.seed)
        progress.begin("load model", total=None, unit="model")
        model = load_model(job.model_path, job.source.config, job.device)
        with torch.no_grad():
            linears = self.calibrate(model, job, artifact, progress)
            write_weights(linears, job, artifact, progress)
            write_kv_scales(model, job, artifact)

    def calibrate(
        self, model: PreTrainedModel, job: QuantizeJob, artifact: ArtifactWriter, progress: Progress
    ) -> tuple[QuantizedLinear, ...]:
        """All between a loaded model and final scales, in place; token counts and fallbacks go to ``artifact``."""
        passes = CalibrationPasses(job, progress) if job.tokens is not None else None
        job.unfuser.unfuse(model)
        if passes and self.options.algorithm == "gptq":
            # Layer by layer, no pass goes through the whole model: routing is counted beforehand, unquantized.
            passes.run(model)
        linears = self._convert(model, job)
        mtq.calibrate(model, algorithms.calibration_algorithm(self.options), passes and passes.run)
        if self.options.algorithm in ("gptq", "awq-clip"):
            without = [linear for linear in linears if _had_no_inputs(linear)]
            record_weights_without_inputs(without, self.options.algorithm, artifact)
        for linear in linears:
            # AWQ clip leaves the weights of an expert without tokens switched off, and thus in BF16.
            linear.weight_quantizer.enable()
        if passes is not None:
            counts = passes.expert_tokens()
            for layer, layer_counts in counts.items():
                artifact.record_expert_tokens(layer, layer_counts)
            if not getattr(job.unfuser.options, "calibrate_all_experts", False):
                apply_rare_rule(linears, counts, job.recipe, artifact)
        share_scales(linears)
        self._search(model, linears, passes, artifact, progress)
        return linears

    def _check(self, job: QuantizeJob) -> None:
        """Everything that can be refused before the model is loaded."""
        self.options.check(job.recipe, job.device)
        self.options.check_unfuser(job.unfuser_name)
        if job.tokens is None and (self.options.needs_tokens or job.recipe.kv_cache is KVCache.FP8):
            what = f"algorithm {self.options.algorithm}" if self.options.needs_tokens else "an FP8 KV cache"
            raise ConfigError(f"{what} needs calibration tokens, and this job has none")

    def _convert(self, model: PreTrainedModel, job: QuantizeJob) -> tuple[QuantizedLinear, ...]:
        """Let ModelOpt put quantizers in, and switch on those of the targets and of the KV cache."""
        on_cpu = job.device == "cpu"
        cpu_backend.register()
        mtq.quantize(model, _ALL_OFF)
        linears = find_linears(model, job.targets)
        enable(
            linears,
            algorithms.weight_attributes(self.options, on_cpu=on_cpu),
            algorithms.input_attributes(on_cpu=on_cpu),
            job.recipe,
        )
        if job.recipe.kv_cache is KVCache.FP8:
            for name in attention_modules(job):
                attention: Any = model.get_submodule(name)
                for quantizer in (attention.k_bmm_quantizer, attention.v_bmm_quantizer):
                    quantizer.set_from_attribute_config({**algorithms.KV_FP8, "enable": True})
        return linears

    def _search(
        self,
        model: PreTrainedModel,
        linears: tuple[QuantizedLinear, ...],
        passes: CalibrationPasses | None,
        artifact: ArtifactWriter,
        progress: Progress,
    ) -> None:
        algorithm = self.options.weight_algorithm
        if algorithm not in algorithms.SEARCHED:
            return
        hessians = None
        if passes and algorithm == "local-hessian":
            hessians = LocalHessians()
            with hessians.watching(linears):
                passes.run(model)
            without = [linear for linear in linears if hessians.get(linear.module.scale_group) is None]
            record_weights_without_inputs(without, algorithm, artifact)
        search_block_scales(linears, algorithm, hessians, progress)


def _had_no_inputs(linear: QuantizedLinear) -> bool:
    """After GPTQ or AWQ clip: no token reached this weight."""
    if hasattr(linear.holder, cpu_backend.GPTQ_TOKENS):
        return bool(getattr(linear.holder, cpu_backend.GPTQ_TOKENS) == 0)
    return not linear.weight_quantizer.is_enabled
