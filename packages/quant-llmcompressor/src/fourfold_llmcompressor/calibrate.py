"""Running llm-compressor's one-shot pipeline over exactly the tokens of the job, in their order."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from llmcompressor import oneshot
from llmcompressor.modifiers import Modifier
from torch import nn
from torch.utils.data import DataLoader

from fourfold.config import KVCache
from fourfold.reference.experts import UnfusedExperts
from fourfold_llmcompressor.model import decoder_layers, per_layer_config_readable, shared_kv_replayable
from fourfold_llmcompressor.options import LlmcompressorOptions
from fourfold_llmcompressor.quiet import quiet_toolchain
from fourfold_llmcompressor.recipes import quantization_modifier, transform_modifiers
from fourfold_llmcompressor.watch import CalibrationWatch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from fourfold.interfaces.quantizer import QuantizeJob
    from fourfold.progress import Progress

#: Quantizing a layer before the next one is observed; the others observe all layers of the unquantized model.
_LAYER_BY_LAYER = frozenset({"gptq", "autoround"})
#: Warnings of llm-compressor that say something about the result, by how they begin.
_TELLING = ("Hessian inversion failed",)


@dataclass(frozen=True)
class Calibration:
    """What was seen: tokens by expert (int64 [E]) of each layer, and warnings that concern the result."""

    counts: dict[int, torch.Tensor]
    warnings: tuple[str, ...]


def calibrate(
    model: PreTrainedModel, job: QuantizeJob, options: LlmcompressorOptions, progress: Progress
) -> Calibration:
    """Run the algorithm over ``model``, in place. Without tokens only weights are looked at, and nothing
    counted.
    """
    moe_layers = sorted({m.layer for m in job.gemma.linears.values() if m.expert is not None})
    experts = {layer: job.gemma.experts_module(layer) for layer in moe_layers}
    batches = token_batches(job)
    layers = decoder_layers(model)
    watch = CalibrationWatch(experts=list(experts.values()), num_experts=job.gemma.num_experts)
    watch.expect([batch["attention_mask"] for batch in batches], layers, progress.advance)
    targets = {str(m.name) for m in job.targets}
    modifier = quantization_modifier(options, job.recipe, model, targets)
    progress.begin("observe", total=len(layers) * len(batches) or None, unit="layer")
    with contextlib.ExitStack() as stack:
        warnings = stack.enter_context(quiet_toolchain())
        if job.recipe.kv_cache is KVCache.FP8:
            stack.enter_context(per_layer_config_readable(model))
        if options.algorithm == "autoround":
            stack.enter_context(shared_kv_replayable(model))
        # In a pass of their own: scales of activations must be those of the transformed model.
        if transforms := transform_modifiers(options, smooth_pairs(job), model, targets):
            _run(model, transforms, batches, options, pipeline="sequential")
        layer_by_layer = options.algorithm in _LAYER_BY_LAYER
        pipeline = "sequential" if layer_by_layer else "basic" if batches else "datafree"
        _run(model, [watch, modifier], batches, options, pipeline=pipeline)
    counts = {layer: watch.counts(name) for layer, name in experts.items()} if batches else {}
    return Calibration(counts, tuple(text for text in warnings if text.startswith(_TELLING)))


def _run(
    model: PreTrainedModel,
    modifiers: list[Modifier],
    batches: list[Mapping[str, torch.Tensor]],
    options: LlmcompressorOptions,
    *,
    pipeline: str,
) -> None:
    # A loader is taken as it is; a data set would be tokenized, shuffled, or sorted by length.
    dataset: Any = batches
    # A dict is a batch with its media read.
    loader: DataLoader[Any] | None = DataLoader(dataset, batch_size=None, collate_fn=dict) if batches else None
    oneshot(
        model=model,
        recipe=modifiers,
        dataset=loader,
        # Asked for whenever there are data, used only to tokenize them.
        processor=object(),
        pipeline=pipeline,
        moe_calibrate_all_experts=options.calibrate_all_experts,
        propagate_error=options.propagate_error,
        clear_sparse_session=True,
    )


def token_batches(job: QuantizeJob) -> list[Mapping[str, torch.Tensor]]:
    """The job's tokens as model inputs, ``batch_size`` rows each, in their order; empty without tokens."""
    return [] if job.tokens is None else job.tokens.model_inputs(job.batch_size)


def smooth_pairs(job: QuantizeJob) -> Mapping[str, str]:
    """``up_proj`` -> ``down_proj`` of every MLP whose both are targets: what scales one can be undone in the
    other.
    """
    names = {str(module.name) for module in job.targets}
    pairs = {name: f"{name.removesuffix('up_proj')}down_proj" for name in names if name.endswith(".up_proj")}
    return {up: down for up, down in sorted(pairs.items()) if down in names}


def show_all_experts(model: nn.Module, options: LlmcompressorOptions) -> bool:
    """Whether every expert is shown every token; switches Fourfold's own experts to it where the options ask.

    llm-compressor's experts follow ``oneshot``'s argument instead.
    """
    ours = [module for module in model.modules() if isinstance(module, UnfusedExperts)]
    for experts in ours:
        experts.calibrate_all_experts |= options.calibrate_all_experts
    return options.calibrate_all_experts or any(experts.calibrate_all_experts for experts in ours)
