"""A study file as typed data. Unknown keys are refused with their path; docs/studies.md is its reference."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PositiveInt, model_validator

from fourfold.calibration.spec import CalibrationSpec
from fourfold.config import Config, Recipe
from fourfold.errors import ConfigError
from fourfold.plan import default_calibration

#: In the place of an unfuser's name: the unfuser that has the quantizer's own name.
OWN = "own"
#: In the place of a cell's name: the unquantized model.
BASELINE = "baseline"
_NAME = r"^[a-z0-9][a-z0-9._-]*$"
#: Tables that would mean "all defaults" when empty; leaving them out says so.
_TABLES = ("calibration", "recipe", "matrix", "evaluate")


def _from_name(value: Any) -> Any:
    """A bare name is short for a table with nothing but the name."""
    return {"name": value} if isinstance(value, str) else value


class UnfuserChoice(Config):
    """An unfuser by name, or ``own``. ``label`` tells two choices of one name apart in cell names."""

    name: str
    options: dict[str, Any] = Field(default_factory=dict)
    label: str | None = Field(default=None, pattern=_NAME)


class QuantizerChoice(Config):
    """A quantizer by name with one algorithm. ``label`` tells two choices of one algorithm apart in cell names."""

    name: str
    algorithm: str = "max"
    options: dict[str, Any] = Field(default_factory=dict)
    label: str | None = Field(default=None, pattern=_NAME)

    @model_validator(mode="after")
    def _algorithm_stands_in_one_place(self) -> QuantizerChoice:
        if "algorithm" in self.options:
            raise ValueError("give the algorithm beside name, not among the options")
        return self


AnyUnfuser = Annotated[UnfuserChoice, BeforeValidator(_from_name)]
AnyQuantizer = Annotated[QuantizerChoice, BeforeValidator(_from_name)]


class LeftOut(Config):
    """Cells of the matrix that are not run, by what they are made of, and why. Must match at least one cell."""

    quantizer: str | None = None
    algorithm: str | None = None
    unfuser: str | None = None
    layout: str | None = None
    reason: str = Field(min_length=1)

    @model_validator(mode="after")
    def _says_which(self) -> LeftOut:
        if not self.model_fields_set & {"quantizer", "algorithm", "unfuser", "layout"}:
            raise ValueError("say which cells: give quantizer, algorithm, unfuser or layout")
        return self


class Matrix(Config):
    """Every quantizer with every unfuser in every layout. Without ``unfusers``, each quantizer's first choice."""

    quantizers: tuple[AnyQuantizer, ...] = Field(min_length=1)
    unfusers: tuple[AnyUnfuser, ...] | None = Field(default=None, min_length=1)
    layouts: tuple[str, ...] = Field(min_length=1)
    leave_out: tuple[LeftOut, ...] = ()


class CellSpec(Config):
    """One run by name; ``recipe`` changes single keys of the study's."""

    name: str = Field(pattern=_NAME)
    quantizer: AnyQuantizer
    unfuser: AnyUnfuser | None = None
    layout: str
    recipe: dict[str, Any] = Field(default_factory=dict)


class TaskChoice(Config):
    """One task of the evaluation, as ``fourfold eval --tasks`` names it; ``limit`` None asks every prompt."""

    name: str
    limit: PositiveInt | None = None
    options: dict[str, Any] = Field(default_factory=dict)


AnyTask = Annotated[TaskChoice, BeforeValidator(_from_name)]


class Evaluation(Config):
    """What every cell is asked once it is served, and the unquantized model before all of them.

    ``server`` None is this machine's. ``repeats`` asks every prompt so often of each model; two or more of the
    unquantized model show the noise floor.
    """

    tasks: tuple[AnyTask, ...] = Field(min_length=1)
    server: str | None = None
    server_options: dict[str, Any] = Field(default_factory=dict)
    repeats: PositiveInt = 1
    concurrency: PositiveInt = 16
    data: str | None = None

    @model_validator(mode="after")
    def _names_each_task_once(self) -> Evaluation:
        names = [task.name for task in self.tasks]
        if len(set(names)) != len(names):
            raise ValueError("tasks: one is named twice")
        return self


class Study(Config):
    """A study file. Paths in it are relative to the working directory, as on the command line."""

    name: str = Field(pattern=_NAME)
    summary: str = Field(min_length=1)
    model: str = Field(min_length=1)
    seed: int = Field(default=0, ge=0)
    device: str = "cpu"
    #: Whether cells of different quantizers are compared, and every checkpoint with its artifact.
    compare: bool = False
    calibration: CalibrationSpec
    recipe: Recipe = Recipe()
    matrix: Matrix | None = None
    cells: tuple[CellSpec, ...] = ()
    evaluate: Evaluation | None = None

    @model_validator(mode="after")
    def _has_cells(self) -> Study:
        if self.matrix is None and not self.cells:
            raise ValueError("a study needs a [matrix] or [[cells]]")
        return self


def load_study(path: Path) -> Study:
    """Read a study file.

    Raises :class:`ConfigError` that names the file and the key: no TOML, an unknown key, a wrong value.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 (byte {error.start})") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not TOML: {error}") from None
    try:
        return parse_study(data)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def parse_study(data: dict[str, Any]) -> Study:
    """A study from parsed TOML, the model's default calibration data filled in."""
    for table in _TABLES:
        if data.get(table) == {}:
            raise ConfigError(f"{table}: an empty table; leave it out to say defaults, or fill it in")
    given = data.get("calibration", {})
    if not isinstance(given, dict):
        raise ConfigError(f"calibration: should be a table (given: {given!r})")
    calibration = default_calibration(str(data.get("model"))) | {"seed": data.get("seed", 0)} | given
    return Study.parse(data | {"calibration": calibration}, where="")
