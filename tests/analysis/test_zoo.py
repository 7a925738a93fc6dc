"""The table of shipped methods: made once, and again when something changes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from optdsl import driver
from optdsl.analysis import zoo
from optdsl.resources import data_dir


@pytest.fixture
def entries(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[zoo.Entry]:
    monkeypatch.setenv("OPTDSL_CACHE", str(tmp_path / "cache"))
    return [zoo.entry(name, driver.locate(name)) for name in ("adamw", "adahessian", "schedule_free_sgd")]


def test_what_was_kept_is_there_until_a_spec_changes(
    entries: list[zoo.Entry], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert zoo.kept() is None
    specs = tmp_path / "specs"
    shutil.copytree(data_dir("specs"), specs)
    monkeypatch.setattr(zoo, "data_dir", lambda kind: specs if kind == "specs" else data_dir(kind))
    zoo.keep(entries)
    assert zoo.kept() == entries
    assert entries[1].inputs  # some has what lists hold
    with open(specs / "lib" / "ema.opt", "a", encoding="utf-8") as file:
        file.write("# another\n")
    assert zoo.kept() is None


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"state": 1}'])
def test_a_damaged_file_is_made_again(entries: list[zoo.Entry], damage: str, tmp_path: Path) -> None:
    zoo.keep(entries)
    (tmp_path / "cache" / "zoo.json").write_text(damage, encoding="utf-8")
    assert zoo.kept() is None
    zoo.keep(entries)
    assert zoo.kept() == entries


def test_without_a_place_nothing_is_kept(
    entries: list[zoo.Entry], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("OPTDSL_CACHE", os.fspath(tmp_path / "file" / "cache"))
    zoo.keep(entries)
    assert zoo.kept() is None
