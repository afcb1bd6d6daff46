"""The page's table of rules is the registry's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fourfold.errors import ConfigError
from fourfold.verify import RULES, get_rule
from fourfold.verify.rule import Phase
from fourfold.verify.table import BEGIN, END, render_rules, update_page

PAGE = Path(__file__).parents[3] / "docs" / "verifier.md"


def test_page_is_up_to_date() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text == update_page(text, render_rules()), "run: python -m fourfold.verify.table docs/verifier.md"


def test_every_rule_is_a_row() -> None:
    assert re.findall(r"^\| (FF\d{3}) \|", render_rules(), re.MULTILINE) == sorted(rule.id for rule in RULES)


def test_rules_are_told_apart() -> None:
    assert len({rule.id for rule in RULES}) == len({rule.check for rule in RULES}) == len(RULES)
    assert len({rule.title for rule in RULES}) == len({rule.why for rule in RULES}) == len(RULES)
    assert all(rule.check.__doc__ and "|" not in rule.title + rule.why for rule in RULES)
    assert get_rule("FF020").title == "every expert matrix is there"


def test_page_without_markers_is_refused() -> None:
    with pytest.raises(ConfigError, match="lacks the markers"):
        update_page(f"{BEGIN} {END}".replace(END, ""), "x")


def test_misfit_rules_have_one_first_and_one_last() -> None:
    """A doubt must be told from damage before any cause is named, and the rule for all the rest comes last."""
    ranks = {rule.id: rule.rank for rule in RULES if rule.phase is Phase.MISFIT}
    assert [rule for rule, rank in ranks.items() if rank < 0] == ["FF094"]
    assert [rule for rule, rank in ranks.items() if rank > 0] == ["FF081"]
    assert not any(rule.rank for rule in RULES if rule.phase is not Phase.MISFIT)
