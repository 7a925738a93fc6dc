"""Searches in a database of PostgreSQL: the same as in a file, side by side, and no password anywhere."""

from __future__ import annotations

import os
import sqlite3
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from optdsl import cli
from optdsl.search import report
from optdsl.search.store import Mismatch, Store
from tests.search.postgres import PASSWORD, database, server
from tests.search.test_engine import TINY, engine, kill_and_go_on, rows, whole

pytestmark = pytest.mark.xdist_group("postgres")


@pytest.fixture(scope="module")
def running() -> Iterator[str]:
    with server() as address:
        yield address


@pytest.fixture
def address(running: str) -> Iterator[str]:
    """That of an empty database."""
    with database(running, f"d{uuid.uuid4().hex}") as made:
        yield made


def content(address: str, run: int = 1) -> dict[str, list[Any]]:
    import psycopg

    with psycopg.connect(address) as db:
        db.execute("SET search_path TO optdsl")
        return rows(db, run)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_killed_at_random_points_it_ends_as_in_a_file(address: str, tmp_path: Path) -> None:
    with Store(tmp_path / "run.db") as store:
        whole(store)
    kill_and_go_on(address, 4)
    file = sqlite3.connect(tmp_path / "run.db")
    assert content(address) == rows(file)
    file.close()
    with Store(address, write=False) as there, Store(tmp_path / "run.db", write=False) as here:
        mine, other = report.text(there), report.text(here)
        assert PASSWORD not in report.page(there)
    times = [line for line in (*mine.splitlines(), *other.splitlines()) if "s in all" in line]
    assert len(times) == 2
    assert mine.replace(times[0], "") == other.replace(times[1], "")


def test_a_run_is_of_one_program_and_other_runs_of_others(address: str) -> None:
    with pytest.raises(FileNotFoundError, match="no store in postgresql://"):
        Store(address, write=False)
    with Store(address) as store, Store(address) as other:
        engine(store, effort=TINY).search(evaluations=2)
        with pytest.raises(Mismatch, match=r"run 1 of .* is being written by another search"):
            engine(other, effort=TINY)
        engine(other, effort=TINY, seed=7).search(evaluations=3)
        store.event("failure", "a\0b")  # which is no text for PostgreSQL
        engine(store, effort=TINY).search(evaluations=3)
        assert (store.run, other.run) == (1, 2)
    with Store(address, write=False) as reader:
        assert (reader.run, reader.settings["seed"]) == (2, 7)
        with pytest.raises(Exception, match="read-only"):
            reader.note("a", 1)
    with Store(address) as store:  # the first program has let go
        engine(store, effort=TINY)
        assert store.run == 1
        assert len(store.evaluations("search")) == 3


def test_programs_that_begin_at_once_in_a_new_database(address: str) -> None:
    count = 6
    together = threading.Barrier(count)

    def one(seed: int) -> None:
        together.wait(60)
        with Store(address) as store:
            store.begin({"seed": seed}, {})
            store.note("mine", seed)
            together.wait(60)  # nobody has let go

    with ThreadPoolExecutor(count) as threads:
        list(threads.map(one, range(count)))
    with Store(address, write=False) as store:
        seeds = {number: settings["seed"] for number, settings, _ in store.runs()}
    assert sorted(seeds) == [1, 2, 3, 4, 5, 6]
    assert sorted(seeds.values()) == list(range(count))
    for number, seed in seeds.items():
        with Store(address, write=False, run=number) as store:
            assert store.noted("mine") == seed


def test_a_lost_connection_is_told(address: str) -> None:
    import psycopg

    with Store(address) as store:
        engine(store, effort=TINY)
        with psycopg.connect(address, autocommit=True) as other:
            other.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
                "AND pid <> pg_backend_pid()"
            )
        with pytest.raises(
            ConnectionError, match=r"any more .*: the same command goes on from here"
        ) as found:
            store.event("a", "b")
        assert PASSWORD not in str(found.value)
    with Store(address) as store:
        engine(store, effort=TINY).search(evaluations=2)


def test_no_password_is_told(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["search", "--from", "sgd", "--tasks", "regression", "--evaluations", "1"]
    with Store(address) as store:
        engine(store, effort=TINY)
    assert cli.main([*command, "--no-proof", "--store", address]) == 0
    assert cli.main(["search", "report", address]) == 0
    assert cli.main(["search", "export", address, "-o", "found"]) == 2  # there is nothing to export
    told = capsys.readouterr()
    assert "run 2 of postgresql://searcher@127.0.0.1" in told.err
    assert "nothing to export" in told.err
    wrong = address.replace(PASSWORD, "wr0ng")
    for bad in (
        wrong,
        wrong.replace("127.0.0.1:", "127.0.0.1:wr0ng"),
        "postgresql://u:wr0ng@wr0ng@127.0.0.1/x",
        "postgresql://u:a/wr0ng@127.0.0.1/x",
        "postgresql://u:%wr0ng@127.0.0.1/x",
        "postgresql://u@127.0.0.1:1/x?password=wr0ng",
    ):
        for arguments in ([*command, "--store", bad], ["search", "report", bad]):
            assert cli.main(arguments) == 2
            more = capsys.readouterr()
            assert more.err.startswith("optdsl: ")
            assert "wr0ng" not in more.out + more.err
    assert PASSWORD not in told.out + told.err
