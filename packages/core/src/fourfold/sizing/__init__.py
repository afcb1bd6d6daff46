"""What a recipe comes to on a GPU before anything is made: bytes, tokens that fit, speed, the best mix for a size."""

from fourfold.sizing.mixed import Mix, Unit, best_mix, units_of
from fourfold.sizing.roofline import BYTES_SHARE, KERNEL_S, tokens_per_second
from fourfold.sizing.shapes import ModelShape, read_shape
from fourfold.sizing.sizes import KVCost, checkpoint_bytes, kv_cost
from fourfold.sizing.sizing import PlanConfig, PlanReport, RecipeRow, make_plan, parse_size
from fourfold.sizing.tables import plan_notes, plan_tables

__all__ = [
    "BYTES_SHARE",
    "KERNEL_S",
    "KVCost",
    "Mix",
    "ModelShape",
    "PlanConfig",
    "PlanReport",
    "RecipeRow",
    "Unit",
    "best_mix",
    "checkpoint_bytes",
    "kv_cost",
    "make_plan",
    "parse_size",
    "plan_notes",
    "plan_tables",
    "read_shape",
    "tokens_per_second",
    "units_of",
]
