"""A study checked in full before any of its work: names and options first, then the model, the disk, the device."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fourfold.calibration.sources import HUB_DATASETS, read_texts
from fourfold.checkpoint.atomic import require_space
from fourfold.environments import ensure_environment
from fourfold.errors import FourfoldError
from fourfold.plan import QuantizeConfig, QuantizePlan, plan_quantize, plan_quantizer, plan_unfuser
from fourfold.plugins import Environment, Registry, Role
from fourfold.progress import Progress
from fourfold.study.cells import Cell, expand
from fourfold.study.evaluation import check_evaluation, make_ready
from fourfold.study.problems import problems_of, refuse
from fourfold.study.spec import Study


@dataclass(frozen=True)
class StudyPlan:
    """A checked study: its cells in running order, each with its plan."""

    study: Study
    cells: tuple[Cell, ...]
    plans: dict[str, QuantizePlan]

    @property
    def model_path(self) -> Path:
        """The model's folder; one for all cells."""
        return next(iter(self.plans.values())).model_path


def check_study(study: Study, registry: Registry) -> tuple[Cell, ...]:
    """The cells, if every name and option of every one is right, and what they are asked; the model is not looked at.

    Raises one :class:`ConfigError` with all that is wrong, each line naming its cells.
    """
    cells, problems = expand(study, registry)
    problems += check_evaluation(study, registry)
    refuse(study, problems, [(cell.name, text) for cell in cells for text in _wrong(cell.config, registry)])
    return cells


def plan_study(study: Study, registry: Registry) -> StudyPlan:
    """Check names and options, then read the model's headers and the calibration source for every cell.

    Raises one :class:`ConfigError` with all that is wrong, each line naming its cells.
    """
    cells = check_study(study, registry)
    plans: dict[str, QuantizePlan] = {}
    wrong: list[tuple[str, str]] = []
    for cell in cells:
        try:
            plans[cell.name] = plan_quantize(cell.config, registry)
        except FourfoldError as error:
            wrong.append((cell.name, str(error)))
    if any(plan.needs_tokens for plan in plans.values()):
        wrong += [("calibration", text) for text in problems_of(lambda: _open_calibration(study))]
    refuse(study, [], wrong)
    return StudyPlan(study, cells, plans)


def prepare(plan: StudyPlan, todo: Iterable[Cell], output: Path, progress: Progress) -> None:
    """Make missing environments and see that the disk holds the cells still to run: artifacts, checkpoints."""
    environments: dict[Environment | None, None] = {}
    needed: dict[str, int] = {}
    for cell in todo:
        quantize = plan.plans[cell.name]
        environments[quantize.quantizer.environment] = None
        needed[cell.stage_key] = needed.get(cell.stage_key, quantize.projected_bytes) + quantize.projected_bytes
    for environment in environments:
        ensure_environment(environment, progress)
    require_space(output, sum(needed.values()))


def prepare_evaluation(plan: StudyPlan, registry: Registry, progress: Progress) -> None:
    """Make the environments of benchmarks and server, and see that every task's prompts can be built, from the hub too.

    Raises one :class:`ConfigError` with all tasks that cannot be asked.
    """
    refuse(plan.study, make_ready(plan.study, plan.model_path, registry, progress))


def _wrong(config: QuantizeConfig, registry: Registry) -> list[str]:
    """All that is wrong with one cell's names and options, not only the first of it."""
    problems = problems_of(lambda: registry.get(Role.EXPORTER, config.layout))
    entry = registry.quantizer(config.quantizer.name)  # expand() resolved it
    problems += problems_of(lambda: plan_unfuser(config, entry, registry))
    found = problems_of(lambda: plan_quantizer(config, entry))
    if not found and not problems:
        unfuser = plan_unfuser(config, entry, registry)
        found = problems_of(lambda: plan_quantizer(config, entry).check_unfuser(unfuser.name))
    return problems + found


def _open_calibration(study: Study) -> None:
    """Read a local source's first text; a hub data set is only known once it is fetched."""
    if study.calibration.source not in HUB_DATASETS:
        next(read_texts(study.calibration), None)
