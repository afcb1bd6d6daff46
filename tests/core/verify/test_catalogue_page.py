"""The page of planted faults is the catalogue's, and the catalogue has every kind that was asked for."""

from __future__ import annotations

from pathlib import Path

from .catalogue import CATALOGUE
from .catalogue_page import KINDS, kind_of, render_page

PAGE = Path(__file__).parents[3] / "docs" / "fault-catalogue.md"


def test_page_is_up_to_date() -> None:
    command = "PYTHONPATH=tests python -m core.verify.catalogue_page docs/fault-catalogue.md"
    assert PAGE.read_text(encoding="utf-8") == render_page(), f"run: {command}"


def test_every_fault_has_a_kind_and_every_kind_a_fault() -> None:
    assert {kind_of(fault) for fault in CATALOGUE} == {kind for kind, _ in KINDS}
