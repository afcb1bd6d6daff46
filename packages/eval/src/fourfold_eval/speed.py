"""``speed``: what the server measures of itself under a load, by the server's own ``measure``.

Figures of one machine compare with figures of the same machine only. The whole picture (prompt lengths, streams,
memory) is the server's bench; this is its one line beside the scores.
"""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from fourfold.errors import EvaluationError
from fourfold.interfaces.benchmark import Measured, Measurement, MeasurementJob
from fourfold.interfaces.server import Load
from fourfold.progress import Progress
from fourfold.results import Direction, MetricResult
from fourfold_eval.options import SpeedOptions

if TYPE_CHECKING:
    from collections.abc import Sequence


class Speed(Measurement[SpeedOptions]):
    """Medians over the measurements; each measurement stands in ``repeats``."""

    def measure(self, job: MeasurementJob, progress: Progress) -> Measured:
        """:class:`EvaluationError` where no server is installed that could measure."""
        options, target = self.options, job.target
        if target.server is None or target.endpoint is None:
            raise EvaluationError("speed: no installed server can measure; install fourfold-vllm")
        loads = [
            Load(
                input_tokens=options.input_tokens,
                output_tokens=options.output_tokens,
                streams=options.streams,
                requests=options.streams,
                seed=job.seed + index,
            )
            for index in range(options.measurements)
        ]
        results = target.server.measure(target.endpoint, loads, progress)
        return Measured(
            metrics=(
                _median("throughput", "generated tokens a second", "tokens/s", [r.output_tokens_s for r in results]),
                _median("ttft", "time to the first token", "ms", [1000 * r.ttft_s for r in results]),
            ),
            prompts=0,
            prompts_sha256=loads[0].sha256(),
            details={"loads": [load.model_dump(mode="json") for load in loads]},
        )


def _median(name: str, label: str, unit: str, values: Sequence[float]) -> MetricResult:
    return MetricResult(
        name=name,
        label=label,
        direction=Direction.HIGHER if unit == "tokens/s" else Direction.LOWER,
        unit=unit,
        n=len(values),
        prompts=0,
        score=statistics.median(values),
        per_prompt=False,
        repeats=tuple(values),
    )
