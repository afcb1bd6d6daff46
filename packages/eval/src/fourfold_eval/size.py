"""``size``: bytes of a checkpoint, weights and everything beside them."""

from __future__ import annotations

from fourfold.config import Options
from fourfold.errors import EvaluationError
from fourfold.evaluate.target import folder_bytes
from fourfold.interfaces.benchmark import Measured, Measurement, MeasurementJob
from fourfold.progress import Progress
from fourfold.results import Direction, MetricResult


class Size(Measurement[Options]):
    """Sums what lies in the folder; shards apart."""

    def needs_endpoint(self, job: MeasurementJob) -> bool:
        """Never."""
        return False

    def measure(self, job: MeasurementJob, progress: Progress) -> Measured:
        """:class:`EvaluationError` for an address, whose files are out of sight."""
        folder = job.target.checkpoint
        if folder is None:
            raise EvaluationError(f"size: {job.target.name} is an address; give the checkpoint's folder")
        weights = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        return Measured(
            metrics=(_bytes("disk", "size on disk", folder_bytes(folder)), _bytes("weights", "weights", weights)),
            prompts=0,
            prompts_sha256="",
            details={},
        )


def _bytes(name: str, label: str, count: int) -> MetricResult:
    return MetricResult(
        name=name, label=label, direction=Direction.LOWER, unit="bytes", n=1, prompts=0, score=count, per_prompt=False
    )
