"""What every shipped spec is to be: short, and with a source."""

from __future__ import annotations

from pathlib import Path

import pytest

from optdsl.driver import check_path
from tests.support import ROOT

SPECS = sorted((ROOT / "specs").rglob("*.opt"))


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_a_spec_is_short(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) <= 40


@pytest.mark.parametrize("path", [p for p in SPECS if p.parent.name == "specs"], ids=lambda path: path.stem)
def test_a_spec_says_what_it_is_and_where_it_is_from(path: Path) -> None:
    program = check_path(path).require()
    assert program.doc
    assert program.cite


def test_there_are_many() -> None:
    assert len([p for p in SPECS if p.parent.name == "specs"]) >= 90
