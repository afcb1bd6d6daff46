"""Options of the built-in backends; import-light, as the command line reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Final, Literal

from pydantic import Field, field_validator

from fourfold.config import KVCache, Options, Recipe, Scheme
from fourfold.errors import ConfigError
from fourfold.interfaces.quantizer import QuantizerOptions

#: Algorithms that weigh errors by a linear's inputs.
_READ_INPUTS: Final = ("local-hessian", "gptq")
_SEVERAL_GPUS: Final = "auto"


class ReferenceUnfuserOptions(Options):
    """``calibrate_all_experts`` shows every expert every token; outputs stay those of the routed ones."""

    calibrate_all_experts: bool = False


class ReferenceQuantizerOptions(QuantizerOptions):
    """What ``--algorithm`` may be with ``--quantizer reference``, and how the engine works.

    ======================  ====================================================================================
    ``max``                 scales from the largest absolute value; bit-equal to ModelOpt's ``max``
    ``mse``                 each block's FP8 scale by squared weight error, as good as trying all 126
    ``four-over-six``       each block's largest value at 4 or at 6, by squared weight error; global scale amax/1536
    ``local-hessian``       as ``mse``, the error weighted by X^T X of the block's own inputs
    ``gptq``                rounding errors carried on to later columns
    ======================  ====================================================================================
    """

    parameter_prefixes: ClassVar = {"gptq_": "gptq"}

    algorithm: Literal["max", "mse", "four-over-six", "local-hessian", "gptq"] = "max"
    #: Hidden states of all batches wait off the device: in host memory, in several passes where that is too little.
    stream: bool = False
    #: Folder of another W4A4 artifact or checkpoint whose input scales are taken; nothing is calibrated then.
    input_scales: str | None = None
    #: Input scales of experts: each its own, or the largest of its layer for all.
    expert_inputs: Literal["expert", "layer"] = "expert"
    #: Transformers' attention while calibrating; ``auto`` is eager on a CPU, as ModelOpt's backend has it, else sdpa.
    attention: Literal["auto", "eager", "sdpa"] = "auto"
    #: Compile norms and the elementwise part of experts: faster on a GPU, and the last bit of an amax may differ.
    fuse: bool = False
    #: Folder where a streamed run keeps finished layers and hidden states, to go on from when it was interrupted.
    work: str | None = None
    #: Host memory for hidden states. What is over it waits for another pass over the layers; on disk with the two
    #: algorithms that read inputs, and all of it with ``work``.
    host_memory_gib: float = Field(default=16.0, ge=0)
    #: Processes that share the calibration batches; with ``--device auto`` one a GPU.
    processes: int = Field(default=1, ge=1)
    #: Share of the Hessian's mean diagonal added to it.
    gptq_damping: float = Field(default=0.01, gt=0, le=1)
    #: How often GPTQ's codes and block scales are searched again, block by block: less error for more time.
    gptq_sweeps: int = Field(default=0, ge=0, le=100)

    @field_validator("input_scales", "work")
    @classmethod
    def _absolute(cls, value: str | None) -> str | None:
        # A stage runs in a process of its own; paths must not depend on where it was started.
        return None if value is None else str(Path(value).absolute())

    @property
    def needs_tokens(self) -> bool:
        """Local Hessian and GPTQ read activations for weights too."""
        return self.algorithm in _READ_INPUTS

    def reads_tokens(self, recipe: Recipe) -> bool:
        """Not when the input scales come from elsewhere."""
        return self.needs_tokens or (recipe.scheme is Scheme.W4A4 and self.input_scales is None)

    def recorded(self) -> dict[str, Any]:
        """Without what belongs to this machine; a folder of input scales as the hash of its files."""
        options = self.model_dump(mode="json", exclude={"work", "host_memory_gib", "processes"})
        if self.input_scales is not None:
            from fourfold.manifest import sha256_file

            files = sorted(Path(self.input_scales).glob("*.safetensors"))
            options["input_scales"] = {file.name: sha256_file(file) for file in files}
        return options

    def clean_up(self, stage_sha256: str) -> None:
        """See :class:`fourfold.interfaces.quantizer.QuantizerOptions`."""
        if self.work is not None:
            from fourfold.engine.work import remove_work

            remove_work(Path(self.work), stage_sha256)

    def check(self, recipe: Recipe, device: str) -> None:
        """Refuse what the engine cannot do, or would do otherwise than asked."""
        several = self.processes > 1 or device == _SEVERAL_GPUS
        if recipe.kv_cache is not KVCache.NONE:
            raise ConfigError("quantizer 'reference' stores no KV scales: use --kv-cache none, or --quantizer modelopt")
        if self.input_scales is not None and recipe.scheme is not Scheme.W4A4:
            raise ConfigError("quantizer.input_scales: scheme W4A16 has no input scales; leave the option out")
        if self.input_scales is not None and not Path(self.input_scales).is_dir():
            raise ConfigError(f"quantizer.input_scales: {self.input_scales} is no folder of a checkpoint or artifact")
        if self.needs_tokens and self.input_scales is not None:
            raise ConfigError(f"algorithm {self.algorithm} calibrates anyway; leave quantizer.input_scales out")
        if self.work is not None and not (self.stream and self.reads_tokens(recipe)):
            raise ConfigError("quantizer.work: only a streamed calibration leaves work to go on from; add --stream")
        if several and self.stream:
            raise ConfigError("several processes share batches, --stream is one process: choose one of the two")
        if several and self.needs_tokens:
            raise ConfigError(
                f"algorithm {self.algorithm} sums over all tokens, and a sum's last bits depend on its order; "
                "use one process"
            )
