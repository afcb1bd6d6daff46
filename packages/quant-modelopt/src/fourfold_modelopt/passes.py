"""Running calibration tokens through the model, counting on the way where the real router sends them."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

from fourfold.calibration import ExpertCoverage
from fourfold.errors import QuantizationError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from fourfold.interfaces.quantizer import QuantizeJob
    from fourfold.progress import Progress


class CalibrationPasses:
    """Passes of a job's tokens through a model. The first one counts tokens by expert, later ones do not.

    Rows with padding (packing ``truncate``) go through padding and all, under their mask: it stays out of the counts,
    and in what the quantizers see, as in the recipes which that packing repeats.
    """

    def __init__(self, job: QuantizeJob, progress: Progress) -> None:
        if job.tokens is None:
            raise QuantizationError("this job has no calibration tokens")
        self._tokens, self._job, self._progress = job.tokens, job, progress
        self._passes = 0
        self._coverage: ExpertCoverage | None = None

    def run(self, model: nn.Module) -> None:
        """All tokens once, reporting every row. This is the ``forward_loop`` that ModelOpt asks for."""
        self._passes += 1
        task = "calibrate" if self._passes == 1 else f"calibrate, pass {self._passes}"
        self._progress.begin(task, total=len(self._tokens), unit="row")
        if self._coverage is None:
            self._coverage = ExpertCoverage(model, self._job.gemma.num_experts)
            counting: ExpertCoverage | nullcontext[None] = self._coverage
        else:
            counting = nullcontext()
        device = model.get_input_embeddings().weight.device  # type: ignore[operator]
        with counting:
            for batch in self._tokens.model_inputs(self._job.batch_size):
                inputs = {name: value.to(device) for name, value in batch.items()}
                # Logits of one position alone: over a vocabulary of 262,144 all of them take several GB.
                model(**inputs, use_cache=False, logits_to_keep=1)
                self._progress.advance(len(inputs["input_ids"]))

    def expert_tokens(self) -> dict[int, torch.Tensor]:
        """Tokens of the first pass by layer and expert, int64 [E]; :class:`QuantizationError` before it."""
        if self._coverage is None:
            raise QuantizationError("no calibration pass was run")
        counts, gemma = self._coverage.expert_token_count, self._job.gemma
        return {layer: counts[gemma.experts_module(layer)] for layer in range(gemma.num_layers)}
