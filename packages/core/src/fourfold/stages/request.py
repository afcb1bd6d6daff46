"""What a stage is asked to do, as typed data: it is hashed for reuse, and sent to another process as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from fourfold.config import Config, Recipe
from fourfold.manifest import Component


def num_threads() -> int:
    """Threads that torch would take here: ``OMP_NUM_THREADS``, else the cores this process may use."""
    import torch

    return torch.get_num_threads()


class QuantizeRequest(Config):
    """One quantizer run. Paths are where this machine has things; :attr:`identity` leaves them out.

    ``threads`` are the stage's, whatever its environment says. On a CPU they decide last bits: LAPACK's Cholesky factor
    (GPTQ) and sums over whole tensors (AutoRound's loss) are split among threads, and so added up in another order.
    Products, norms, softmax and largest values are not. On GPUs the CPU's threads decide nothing, and are left out.
    """

    stage: Literal["quantize"] = "quantize"
    model_path: Path
    source_files: dict[str, str]
    tokens_path: Path | None
    tokens_sha256: str | None
    output: Path
    recipe: Recipe
    unfuser: Component
    quantizer: Component
    batch_size: int
    device: str
    seed: int
    threads: int = Field(default_factory=num_threads, ge=1)
    #: Hash of the stage's identity, which knows its code and packages too; None in a request made by hand.
    stage_sha256: str | None = None

    @property
    def identity(self) -> dict[str, object]:
        """All that decides the result, in JSON terms."""
        left_out = {"stage", "model_path", "tokens_path", "output", "stage_sha256"}
        if self.device != "cpu":
            left_out.add("threads")
        return self.model_dump(mode="json", exclude=left_out)
