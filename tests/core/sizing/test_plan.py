"""The best mix is the best, and what it says can be handed to ``fourfold quantize``."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.sensitivity.reports import demo_report
from fourfold.checkpoint.index import TensorFolder
from fourfold.config import Recipe
from fourfold.demo import model_path
from fourfold.errors import ConfigError, FourfoldError
from fourfold.models.gemma4 import ModuleKind, read_gemma4
from fourfold.plan import projected_bytes
from fourfold.sizing import PlanConfig, Unit, best_mix, make_plan, parse_size
from fourfold.targets import resolve_targets

units = st.lists(
    st.tuples(st.sampled_from([3, 5, 8, 13]), st.floats(0, 10, allow_nan=False) | st.sampled_from([0.0, 1.0])),
    max_size=9,
).map(lambda pairs: [Unit(i, ModuleKind.EXPERT, saving, error) for i, (saving, error) in enumerate(pairs)])


@settings(max_examples=300, deadline=None)
@given(units=units, needed=st.integers(0, 80))
def test_no_subset_beats_the_mix(units: list[Unit], needed: int) -> None:
    fitting = [
        sum(unit.error for unit in subset)
        for size in range(len(units) + 1)
        for subset in combinations(units, size)
        if sum(unit.saving for unit in subset) >= needed
    ]
    mix = best_mix(units, needed)
    if mix is None:
        assert not fitting
        return
    assert mix.saving == sum(unit.saving for unit in mix.quantized) >= needed
    assert mix.error == pytest.approx(sum(unit.error for unit in mix.quantized))
    assert mix.error == pytest.approx(min(fitting), abs=1e-9)


def test_errors_must_be_numbers() -> None:
    with pytest.raises(ValueError, match="must not be negative or NaN"):
        best_mix([Unit(0, ModuleKind.EXPERT, 1, float("nan"))], 1)


def test_the_mix_of_the_demo_is_what_its_patterns_give(tmp_path: Path) -> None:
    report = tmp_path / "sensitivity.json"
    demo_report().write(report)
    source = TensorFolder(model_path())
    gemma = read_gemma4(source)
    seen = set()
    least = make_plan(PlanConfig(model="demo", fit=1)).recipes[1].bytes
    for fit in (least, least + 60_000, least + 150_000, 9_000_000, 12_000_000):
        plan = make_plan(PlanConfig(model="demo", fit=fit, sensitivity=str(report)))
        assert plan.mix is not None
        recipe = Recipe.parse({"exclude": plan.mix.exclude}, where="recipe")
        targets = resolve_targets(gemma, recipe)
        assert plan.mix.row.bytes == pytest.approx(projected_bytes(source, targets), abs=64)
        assert plan.mix.row.bytes <= fit
        everything = plan.recipes[1]
        assert plan.mix.row.error is not None and everything.error is not None
        assert plan.mix.row.error <= everything.error
        seen.add(plan.mix.exclude)
    assert len(seen) == 5
    assert any("*.layers." in pattern for patterns in seen for pattern in patterns)
    too_small = make_plan(PlanConfig(model="demo", fit=5_000_000, sensitivity=str(report)))
    assert too_small.mix is None
    assert "even with every linear in NVFP4 the checkpoint takes" in (too_small.mix_absent or "")


@pytest.mark.parametrize(("text", "size"), [("17GB", 17 * 10**9), ("16 GiB", 16 * 2**30), ("17.5gb", 17_500_000_000)])
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


def test_refusals(tmp_path: Path) -> None:
    report = tmp_path / "sensitivity.json"
    demo_report().write(report)
    cases: list[tuple[dict[str, object], str]] = [
        ({"model": "demo"}, "give --gpu NAME, --fit SIZE, or both"),
        ({"model": "demo", "gpu": "h900"}, "unknown GPU 'h900'; known: a100"),
        ({"model": "gemma4-26b-a4b", "fit": 10**10, "sensitivity": str(report)}, "is in only one of the report and"),
    ]
    for options, message in cases:
        with pytest.raises(FourfoldError, match=message):
            make_plan(PlanConfig.parse(options, where=""))
    for text in ("", "GB", "17 apples", "-3GB", "0"):
        with pytest.raises(ConfigError, match="is no size; write it like 17GB or 16GiB"):
            parse_size(text)
