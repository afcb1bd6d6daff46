"""From a study to its cells: the matrix multiplied out, left-outs taken away, one name each."""

from __future__ import annotations

from dataclasses import dataclass

from fourfold.config import Recipe
from fourfold.errors import ConfigError, FourfoldError
from fourfold.manifest import Component
from fourfold.plan import QuantizeConfig
from fourfold.plugins import Registry
from fourfold.study.spec import BASELINE, OWN, CellSpec, LeftOut, Matrix, QuantizerChoice, Study, UnfuserChoice


@dataclass(frozen=True)
class Cell:
    """One run of a study. ``name`` is its folder's name too."""

    name: str
    config: QuantizeConfig

    @property
    def stage_key(self) -> str:
        """Equal for cells that share their quantize stage: all but the layout."""
        return self.config.model_copy(update={"layout": ""}).canonical_json()


@dataclass(frozen=True)
class _Choice:
    name: str
    quantizer: QuantizerChoice
    unfuser: UnfuserChoice | None
    layout: str
    recipe: Recipe


def expand(study: Study, registry: Registry) -> tuple[tuple[Cell, ...], list[str]]:
    """The cells in running order, those that share a stage next to each other, and what is wrong with the rest.

    Wrong is: a left-out that matches nothing, a name twice, the same run twice, an unknown quantizer where ``own``
    must be resolved, a recipe that is none.
    """
    problems: list[str] = []
    choices = _of_matrix(study, problems)
    for spec in study.cells:
        try:
            choices.append(_of_spec(spec, study))
        except FourfoldError as error:
            problems.append(f"{spec.name}: {error}")
    cells: list[Cell] = []
    for choice in choices:
        try:
            cells.append(Cell(choice.name, _config(choice, study, registry)))
        except FourfoldError as error:
            problems.append(f"{choice.name}: {error}")
    _find_repeats(cells, problems)
    first: dict[str, int] = {}
    for cell in cells:
        first.setdefault(cell.stage_key, len(first))
    return tuple(sorted(cells, key=lambda cell: first[cell.stage_key])), problems


def _of_matrix(study: Study, problems: list[str]) -> list[_Choice]:
    matrix = study.matrix
    if matrix is None:
        return []
    unused = dict.fromkeys(range(len(matrix.leave_out)))
    choices = []
    for quantizer, unfuser, layout in _product(matrix):
        matching = [i for i, out in enumerate(matrix.leave_out) if _is_left_out(out, quantizer, unfuser, layout)]
        for index in matching:
            unused.pop(index, None)
        if not matching:
            name = f"{_label(quantizer)}.{_unfuser_label(unfuser)}.{layout}"
            choices.append(_Choice(name, quantizer, unfuser, layout, study.recipe))
    problems += [f"matrix.leave_out.{index}: matches no cell of the matrix" for index in unused]
    if not choices:
        problems.append("matrix.leave_out: leaves no cell of the matrix")
    return choices


def _product(matrix: Matrix) -> list[tuple[QuantizerChoice, UnfuserChoice | None, str]]:
    unfusers: tuple[UnfuserChoice | None, ...] = matrix.unfusers or (None,)
    return [(q, u, layout) for q in matrix.quantizers for u in unfusers for layout in matrix.layouts]


def _is_left_out(out: LeftOut, quantizer: QuantizerChoice, unfuser: UnfuserChoice | None, layout: str) -> bool:
    made_of = {
        "quantizer": quantizer.name,
        "algorithm": quantizer.algorithm,
        "unfuser": unfuser.name if unfuser else None,
        "layout": layout,
    }
    return all(getattr(out, key) in (None, value) for key, value in made_of.items())


def _label(quantizer: QuantizerChoice) -> str:
    return quantizer.label or f"{quantizer.name}-{quantizer.algorithm}"


def _unfuser_label(unfuser: UnfuserChoice | None) -> str:
    return "default" if unfuser is None else unfuser.label or unfuser.name


def _of_spec(spec: CellSpec, study: Study) -> _Choice:
    recipe = Recipe.parse(study.recipe.model_dump(mode="json") | spec.recipe, where="recipe")
    return _Choice(spec.name, spec.quantizer, spec.unfuser, spec.layout, recipe)


def _config(choice: _Choice, study: Study, registry: Registry) -> QuantizeConfig:
    return QuantizeConfig(
        model=study.model,
        quantizer=Component(
            name=choice.quantizer.name,
            options={"algorithm": choice.quantizer.algorithm, **choice.quantizer.options},
        ),
        unfuser=_resolve_unfuser(choice, registry),
        layout=choice.layout,
        recipe=choice.recipe,
        calibration=study.calibration,
        device=study.device,
        seed=study.seed,
    )


def _resolve_unfuser(choice: _Choice, registry: Registry) -> Component:
    """The unfuser by its real name, so that ``own`` and the name itself are the same run."""
    entry = registry.quantizer(choice.quantizer.name)
    unfuser = choice.unfuser
    if unfuser is None:
        return Component(name=entry.unfusers[0])
    if unfuser.name == OWN and entry.name not in entry.unfusers:
        raise ConfigError(
            f"quantizer {entry.name!r} has no unfuser of its own; name one of: {', '.join(entry.unfusers)}"
        )
    return Component(name=entry.name if unfuser.name == OWN else unfuser.name, options=unfuser.options)


def _find_repeats(cells: list[Cell], problems: list[str]) -> None:
    names: dict[str, Cell] = {}
    runs: dict[str, Cell] = {}
    for cell in cells:
        if cell.name == BASELINE:
            problems.append(f"{BASELINE}: the name of the unquantized model's evaluation; give the cell another")
        elif cell.name in names:
            problems.append(f"{cell.name}: two cells have this name; give one of their choices a label")
        elif (other := runs.get(cell.config.canonical_json())) is not None:
            problems.append(f"{cell.name}: the same run as {other.name}; leave one out")
        names.setdefault(cell.name, cell)
        runs.setdefault(cell.config.canonical_json(), cell)
