"""What a comparison says: frozen records that print as JSON."""

from __future__ import annotations

from enum import StrEnum
from typing import Final, Literal

from fourfold.config import Config

SCHEMA_VERSION: Final = 1


class Level(StrEnum):
    """When two checkpoints count as equal.

    ``bytes``: what is stored is the same, up to a layout's names and the direction of its scales (a divisor and a
    multiplier are the same when one is the float32 reciprocal of the other). ``decoded``: every decoded value is
    the same. ``tolerance``: quantized weights and their input scales may differ by a stated relative amount,
    everything else must be equal when decoded.
    """

    BYTES = "bytes"
    DECODED = "decoded"
    TOLERANCE = "tolerance"


class Status(StrEnum):
    """How one tensor compares; exactly one of the three."""

    EQUAL_BYTES = "equal bytes"
    EQUAL_DECODED = "equal decoded values"
    DIFFERING = "differing"


class Part(StrEnum):
    """What is compared under one name: a linear's weight, its input scale, or a tensor of any other kind."""

    WEIGHT = "weight"
    INPUT_SCALE = "input scale"
    OTHER = "other tensor"


class Cause(StrEnum):
    """Why a tensor differs. docs/compare.md says what shows each one."""

    AMAX = "other-amax"
    GLOBAL_SCALE_ROUNDING = "other-global-scale-rounding"
    SCALE_GROUP = "scale-group"
    RECIPROCAL = "reciprocal-rounding"
    BLOCK_SCALE_ROUNDING = "other-block-scale-rounding"
    BLOCK_SCALE = "other-block-scale"
    ZERO_BLOCK = "zero-block-policy"
    CODE_ROUNDING = "other-code-rounding"
    CODE = "other-code"
    SIGNED_ZERO = "signed-zero"
    INPUT_AMAX = "other-input-amax"
    INPUT_SCALE_ROUNDING = "other-input-scale-rounding"
    INPUT_SCALE_GROUP = "input-scale-group"
    INPUT_FALLBACK = "input-scale-fallback"
    INPUT_SCALE_MISSING = "input-scale-in-one-only"
    QUANTIZED_IN_ONE = "quantized-in-one-only"
    VALUE = "other-value"
    DTYPE = "other-dtype"
    SHAPE = "other-shape"
    ONLY_IN_A = "only-in-a"
    ONLY_IN_B = "only-in-b"


#: One line for each cause, as the tables print it.
CAUSE_TEXT: dict[Cause, str] = {
    Cause.AMAX: "the global scales stand for different amax",
    Cause.GLOBAL_SCALE_ROUNDING: "same amax, but one global scale was computed in the weights' 16-bit type",
    Cause.SCALE_GROUP: "one global scale is the largest of the scale group, the other the tensor's own",
    Cause.RECIPROCAL: "one scale is the reciprocal of the other's reciprocal: the last bit a change of layout costs",
    Cause.BLOCK_SCALE_ROUNDING: "block scales one E4M3 step apart that the global scales do not account for",
    Cause.BLOCK_SCALE: "block scales that no common block amax explains: searched, or from other weights",
    Cause.ZERO_BLOCK: "blocks whose codes are all zero carry another block scale",
    Cause.CODE_ROUNDING: "neighbouring codes that the scales do not account for: a tie, or the last bit of a quotient",
    Cause.CODE: "codes that no common weight explains: adjusted for error (GPTQ), or other weights",
    Cause.SIGNED_ZERO: "+0 in one, -0 in the other",
    Cause.INPUT_AMAX: "the input scales stand for different amax: other tokens, or another way to gather",
    Cause.INPUT_SCALE_ROUNDING: "same input amax, but one scale was computed in the activations' 16-bit type",
    Cause.INPUT_SCALE_GROUP: "one input scale is the largest over several modules, the other the module's own",
    Cause.INPUT_FALLBACK: "the manifest names a fallback for this module's input scale",
    Cause.INPUT_SCALE_MISSING: "an input scale is stored in one only",
    Cause.QUANTIZED_IN_ONE: "NVFP4 in one, unquantized in the other",
    Cause.VALUE: "an unquantized tensor with other values",
    Cause.DTYPE: "stored in another type",
    Cause.SHAPE: "stored in another shape",
    Cause.ONLY_IN_A: "only A holds it",
    Cause.ONLY_IN_B: "only B holds it",
}


class SideInfo(Config):
    """One of the two folders. ``name`` is the folder's name, not its path."""

    name: str
    layout: str
    num_tensors: int
    num_quantized_modules: int


class TensorCounts(Config):
    """Compared tensors by status: ``total = equal_bytes + equal_decoded + differing``."""

    total: int
    equal_bytes: int
    equal_decoded: int
    differing: int


class PartCounts(Config):
    """One stored part over all modules quantized in both: tensors equal to the byte, and single elements."""

    tensors: int
    equal: int
    elements: int
    differing_elements: int


class Difference(Config):
    """One tensor that is not equal to the byte.

    ``relative_difference`` is ``|a - b| / |b|`` in the Frobenius norm of the decoded values. ``scale_ratio`` is A's
    scale through B's, decode direction. ``rule_a`` and ``rule_b`` name the computation that gives a side's bytes back
    from the source, where a source was given and one does.
    """

    tensor: str
    part: Part
    status: Status
    causes: tuple[Cause, ...]
    detail: str
    relative_difference: float | None = None
    scale_ratio: float | None = None
    codes_differing: int = 0
    block_scales_differing: int = 0
    rule_a: str | None = None
    rule_b: str | None = None


class WorstBlock(Config):
    """The block of 16 with a tensor's largest difference; values as decoded."""

    tensor: str
    row: int
    block: int
    max_abs_difference: float
    a: tuple[float, ...]
    b: tuple[float, ...]


class TableRow(Config):
    """One row of a table: a layer or a role. Percentages are of codes and block scales quantized in both."""

    key: str
    tensors: int
    equal_bytes: int
    equal_decoded: int
    differing: int
    codes_differing_percent: float | None
    block_scales_differing_percent: float | None
    relative_difference: float | None
    relative_error_a: float | None
    relative_error_b: float | None


class Histogram(Config):
    """Counts by bin; ``labels`` name the bins."""

    title: str
    labels: tuple[str, ...]
    counts: tuple[int, ...]


class Rules(Config):
    """How many weights each named computation gives back to the byte from the source, for each side."""

    a: dict[str, int]
    b: dict[str, int]
    #: Weights that are not equal to the byte, and how many of them have a rule on both sides.
    differing: int
    explained: int


class CompareReport(Config):
    """The result of :func:`fourfold.compare.compare`."""

    schema_version: Literal[1] = SCHEMA_VERSION
    a: SideInfo
    b: SideInfo
    source: str | None
    level: Level
    tolerance: float
    equal: bool
    tensors: TensorCounts
    parts: dict[str, PartCounts]
    causes: dict[str, int]
    by_layer: tuple[TableRow, ...]
    by_role: tuple[TableRow, ...]
    histograms: tuple[Histogram, ...]
    worst_blocks: tuple[WorstBlock, ...]
    rules: Rules | None
    #: Scales that are reciprocals of one another, though not the other way round: equal, and decoded one ulp apart.
    inexact_reciprocals: int
    differences: tuple[Difference, ...]
