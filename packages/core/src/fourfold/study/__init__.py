"""Studies: many runs of unfuser x quantizer x layout planned as one, run one by one, ended with one table."""

from fourfold.study.cells import Cell, expand
from fourfold.study.executors import Executor, LocalExecutor
from fourfold.study.jobs import parse_needs
from fourfold.study.plan import StudyPlan, check_study, plan_study
from fourfold.study.results import CellResult, PairResult, StudyResults
from fourfold.study.run import run_study
from fourfold.study.spec import Study, load_study
from fourfold.study.table import study_tables

__all__ = [
    "Cell",
    "CellResult",
    "Executor",
    "LocalExecutor",
    "PairResult",
    "Study",
    "StudyPlan",
    "StudyResults",
    "check_study",
    "expand",
    "load_study",
    "parse_needs",
    "plan_study",
    "run_study",
    "study_tables",
]
