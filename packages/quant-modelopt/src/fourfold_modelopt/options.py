"""Options of the ModelOpt quantizer: the algorithm and each algorithm's own parameters. Imports no toolchain."""

from __future__ import annotations

from typing import ClassVar, Final, Literal

from pydantic import Field

from fourfold.config import Recipe, Scheme
from fourfold.errors import ConfigError
from fourfold.interfaces.quantizer import QuantizerOptions

#: Algorithms ModelOpt ships whose result no server can load for experts, and why.
UNSERVABLE: Final = {
    "awq-lite": "it leaves a pre_quant_scale before every expert's input, and no MoE kernel of vLLM applies one",
    "awq-full": "it begins with awq-lite, which leaves a pre_quant_scale before every expert's input, and no MoE "
    "kernel of vLLM applies one; awq-clip is its servable half",
    "svdquant": "it adds a low-rank branch and a pre_quant_scale to every expert, and no MoE kernel of vLLM runs them",
}

_SKIPPED: Final = "ModelOpt passes by its fused wrapper there, and all experts would stay at plain max"
#: These look at each expert's own inputs; why that does not go together with ModelOpt's fused wrapper.
PER_EXPERT_INPUTS: Final = {
    "local-hessian": "the fused wrapper has one input quantizer for all experts, and cannot tell their inputs apart",
    "gptq": _SKIPPED,
    "awq-clip": _SKIPPED,
}

_FP8_NORMAL_RANGE: Final = 28672.0


class ModelOptOptions(QuantizerOptions):
    """What ``--algorithm`` may be with ``--quantizer modelopt``, and each algorithm's parameters.

    ======================  ====================================================================================
    ``max``                 scales from the largest absolute value
    ``mse``                 each block's FP8 scale out of all 126, by squared weight error
    ``four-over-six``       each block's largest value at 4 or at 6, by squared weight error; global scale amax/1536
    ``local-hessian``       as ``mse``, the error weighted by X^T X of the block's own inputs
    ``gptq``                rounding errors carried on to later columns, layer by layer
    ``awq-clip``            the global scale's amax clipped by output error
    ``act-headroom``        input scales with room above what calibration saw; weights by ``headroom_weights``
    ======================  ====================================================================================

    ``awq-lite``, ``awq-full`` and ``svdquant`` are known, and refused with the reason.
    """

    parameter_prefixes: ClassVar = {"gptq_": "gptq", "clip_": "awq-clip", "headroom_": "act-headroom"}

    algorithm: Literal[
        "max", "mse", "four-over-six", "local-hessian", "gptq", "awq-clip", "act-headroom",
        "awq-lite", "awq-full", "svdquant",
    ] = "max"  # fmt: skip
    #: Share of the Hessian's mean diagonal added to it.
    gptq_damping: float = Field(default=0.01, gt=0, le=1)
    #: Columns updated together; a multiple of 16.
    gptq_block_size: int = Field(default=128, ge=16, multiple_of=16)
    #: Smallest share of amax tried.
    clip_min_ratio: float = Field(default=0.5, gt=0, lt=1)
    #: Step between the shares tried.
    clip_step: float = Field(default=0.05, gt=0, le=0.5)
    #: amax = max(rho x anchor, upper), over the amaxes of activation blocks.
    headroom_rho: float = Field(default=16384.0, gt=0, lt=_FP8_NORMAL_RANGE)
    #: Percentile of the block amaxes that is the anchor.
    headroom_anchor_percentile: float = Field(default=1.0, gt=0, le=100)
    #: Percentile of the block amaxes that is upper; 100 never clips calibration data.
    headroom_upper_percentile: float = Field(default=99.99, gt=0, le=100)
    #: How ``act-headroom`` treats weights.
    headroom_weights: Literal["max", "mse", "four-over-six", "local-hessian"] = "max"

    @property
    def weight_algorithm(self) -> str:
        """The algorithm for weights: ``act-headroom`` delegates them."""
        return self.headroom_weights if self.algorithm == "act-headroom" else self.algorithm

    @property
    def needs_tokens(self) -> bool:
        """Local Hessian, GPTQ and AWQ clip read activations for weights too."""
        return self.weight_algorithm in PER_EXPERT_INPUTS

    def check(self, recipe: Recipe, device: str) -> None:
        """Refuse an algorithm that no server can load for experts, or that has nothing to do under the scheme."""
        if self.algorithm in UNSERVABLE:
            raise ConfigError(
                f"algorithm {self.algorithm} is refused: {UNSERVABLE[self.algorithm]} "
                "(vllm-project/vllm#45333); use mse, four-over-six, local-hessian, gptq or awq-clip"
            )
        if self.algorithm == "act-headroom" and recipe.scheme is Scheme.W4A16:
            raise ConfigError(
                "algorithm act-headroom sets input scales, which scheme W4A16 does not have; "
                f"use algorithm {self.headroom_weights}"
            )

    def check_unfuser(self, unfuser: str) -> None:
        """Refuse an unfuser behind which the algorithm would not see, or not touch, the experts."""
        reason = PER_EXPERT_INPUTS.get(self.weight_algorithm)
        if unfuser == "modelopt" and reason:
            raise ConfigError(
                f"algorithm {self.weight_algorithm} needs every expert's own inputs: {reason}; use --unfuser reference"
            )
