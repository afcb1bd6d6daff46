"""What a sensitivity run found, as frozen records; ``sensitivity.json`` is one :class:`SensitivityReport`.

All errors are relative root mean squares: ``sqrt(sum((q - r)^2) / sum(r^2))`` over everything a row covers, r the
unquantized value. None where a row has nothing to be measured on, such as an expert no token reached.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

from pydantic import FiniteFloat, NonNegativeInt

from fourfold.calibration.tokens import TokenSetRecord
from fourfold.checkpoint.atomic import write_whole
from fourfold.checkpoint.index import read_json
from fourfold.config import Config, Scheme
from fourfold.errors import CheckpointError
from fourfold.models.gemma4 import ModuleKind

SENSITIVITY_FILE = "sensitivity.json"
SCHEMA_VERSION: Final = 1
#: The role row that has every target quantized.
ALL_ROLES = "all"


class LinearRow(Config):
    """The linears of one layer with one projection's name: one of them, or one an expert.

    Attributes:
        tokens: rows of input the linears saw together; a token counts once an expert it was routed to.
        unreached: linears no token reached.
        weight_error: of the decoded weights.
        output_error_w4a16: of the outputs with the weights alone in NVFP4.
        output_error_w4a4: with the activations too, under each linear's static input scale.
        worst_module: the linear with the largest W4A4 output error; ``worst_error`` is that error.
    """

    layer: int
    kind: ModuleKind
    projection: str
    modules: int
    tokens: NonNegativeInt
    unreached: NonNegativeInt
    weight_error: FiniteFloat
    output_error_w4a16: FiniteFloat | None
    output_error_w4a4: FiniteFloat | None
    worst_module: str | None
    worst_error: FiniteFloat | None


class GroupRow(Config):
    """One layer's linears of one role, quantized together while all else stays as it is.

    Attributes:
        stream_error: change of the layer's output, the residual stream included.
        kl: mean KL divergence of the model's next-token distribution, nats a token; None when not asked for.
        kl_standard_error: of the mean, over calibration rows; None below two rows.
        top1_agreement: share of positions with the same most likely token.
    """

    layer: int
    kind: ModuleKind
    modules: int
    weight_error: FiniteFloat
    stream_error: FiniteFloat
    kl: FiniteFloat | None = None
    kl_standard_error: FiniteFloat | None = None
    top1_agreement: FiniteFloat | None = None

    @property
    def key(self) -> tuple[int, ModuleKind]:
        """Layer and role, one group of a report each."""
        return self.layer, self.kind


class RoleRow(Config):
    """All layers' linears of one role quantized (``all``: every target): what the model's answers make of it."""

    role: str
    modules: int
    kl: FiniteFloat
    kl_standard_error: FiniteFloat | None
    top1_agreement: FiniteFloat
    tokens: int


class SensitivityReport(Config):
    """The result of :func:`fourfold.sensitivity.measure_sensitivity`.

    Attributes:
        weights: what was decoded: the ``codec``'s rounding (nearest, amax scales) or a ``checkpoint``.
        scheme: what groups and roles were quantized to.
        expert_token_counts: calibration tokens an expert saw, by name of the experts module, in model order.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    model: str
    checkpoint: str | None
    checkpoint_manifest_sha256: str | None = None
    weights: Literal["codec", "checkpoint"]
    scheme: Scheme
    tokens: TokenSetRecord
    dtype: str
    device: str
    packages: dict[str, str]
    linears: tuple[LinearRow, ...]
    groups: tuple[GroupRow, ...]
    roles: tuple[RoleRow, ...]
    expert_token_counts: dict[str, tuple[int, ...]]
    notes: tuple[str, ...] = ()

    def write(self, path: Path) -> None:
        """Write the report as JSON, whole; :class:`fourfold.errors.OutputError` says why it cannot be."""
        write_whole(path, self.model_dump_json(indent=1) + "\n")


def read_sensitivity(path: Path) -> SensitivityReport:
    """Read what :meth:`SensitivityReport.write` wrote; :class:`CheckpointError` names what is wrong with it."""
    data = read_json(path)
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version != SCHEMA_VERSION:
        raise CheckpointError(
            f"{path}: not a sensitivity report of schema {SCHEMA_VERSION} (schema_version {version!r})"
        )
    return SensitivityReport.parse(data, where=str(path))
