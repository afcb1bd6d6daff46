"""What the vLLM servers can be told. Read by the command line, so nothing heavy is imported here."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from fourfold.config import Options

#: vLLM's container of the version this member pins.
DOCKER_IMAGE = "vllm/vllm-openai:v0.32.0"


class VllmOptions(Options):
    """Options of both servers. None means: chosen for the checkpoint and the machine, with a reason in the plan.

    ``extra`` goes to vLLM as it stands, last, so that it wins over a chosen flag. ``nodes`` above 1 spreads layers
    over that many machines through Ray; ``tensor_parallel`` then counts the GPUs of one of them.
    """

    host: str = "127.0.0.1"
    #: 0 takes a free port.
    port: int = Field(default=8888, ge=0, le=65535)
    served_model_name: str | None = Field(default=None, min_length=1)
    #: Name in :data:`fourfold.hardware.GPUS`, for a plan or to overrule what ``nvidia-smi`` says.
    gpu: str | None = None
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    max_model_len: int | None = Field(default=None, ge=1)
    max_num_seqs: int | None = Field(default=None, ge=1)
    kv_cache_dtype: Literal["auto", "bfloat16", "fp8"] | None = None
    gpu_memory_utilization: float | None = Field(default=None, gt=0, le=1)
    tensor_parallel: int | None = Field(default=None, ge=1)
    expert_parallel: bool | None = None
    nodes: int = Field(default=1, ge=1)
    enforce_eager: bool = False
    #: Fourfold's plugin computes NVFP4 in plain torch: always (on), where no kernel exists (auto), or never.
    emulation: Literal["auto", "on", "off"] = "auto"
    activations: Literal["nvfp4", "none"] | None = None
    input_scale_rule: Literal["per-expert", "merged", "ignored"] | None = None
    #: The emulation decodes weights once, when loaded, or at each use, in 0.56 bytes each; by what fits.
    decode: Literal["once", "lazy"] | None = None
    docker_image: str = DOCKER_IMAGE
    #: Where the server's output goes, and stays; by default a temporary file, which stays only when something fails.
    log: Path | None = None
    #: Seconds until the first answer; a 26B with compilation takes minutes.
    timeout_s: float = Field(default=1800, gt=0)
    extra: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _emulation_is_on_for_its_settings(self) -> Self:
        if self.emulation == "off" and (self.activations or self.input_scale_rule or self.decode):
            raise ValueError("activations, input_scale_rule and decode are the emulation's: set emulation auto or on")
        return self
