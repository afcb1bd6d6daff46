"""Every planted fault is found by the rule that names its cause, in both layouts; nothing crashes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fourfold.verify import RULES, get_rule, verify_checkpoint

from .catalogue import CATALOGUE
from .faults import Fault
from .good_checkpoints import Editable, Variant

CASES = [pytest.param(fault, layout, id=f"{fault.name}-{layout}") for fault in CATALOGUE for layout in fault.layouts]


@pytest.mark.parametrize(("fault", "layout"), CASES)
def test_fault_is_found_by_the_rule_that_names_it(
    fault: Fault, layout: str, editable: Callable[..., Editable], source: Path
) -> None:
    checkpoint = editable(Variant(layout, **fault.variant), manifest=fault.manifest)
    if fault.plant is not None:
        fault.plant(checkpoint, source)
        checkpoint.save()
    if fault.after is not None:
        fault.after(checkpoint.folder)

    report = verify_checkpoint(checkpoint.folder, source=source)
    found = {finding.rule for finding in report.findings}
    assert report.ok is get_rule(fault.rule).is_doubt
    assert fault.rule in found, f"found by {sorted(found)} only"
    assert found <= {fault.rule, *fault.also}, [(f.rule, f.message) for f in report.findings][:5]
    assert all(f.tensor and f.found and f.expected and f.message for f in report.findings)

    blind = verify_checkpoint(checkpoint.folder)
    assert (fault.rule in {finding.rule for finding in blind.findings}) is fault.blind


def test_every_rule_has_a_planted_fault() -> None:
    assert {rule.id for rule in RULES} == {fault.rule for fault in CATALOGUE}


def test_the_catalogue_is_as_large_as_it_says() -> None:
    assert len({fault.name for fault in CATALOGUE}) == len(CATALOGUE) >= 60
