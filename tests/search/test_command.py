"""`optdsl search` from outside: what it says, Ctrl-C, going on, and what is wrong with a request."""

from __future__ import annotations

import importlib.util
import io
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from optdsl import cli
from optdsl.search import live
from optdsl.search.command import for_search, seconds
from optdsl.search.engine import Progress, Settings
from optdsl.search.pool import Pool
from optdsl.search.store import Store

TASKS = "regression"


def command(store: Path, *more: str) -> list[str]:
    return ["search", "--from", "sgd", "--tasks", TASKS, "--store", str(store), *more]


def start(*arguments: str, **how: Any) -> subprocess.Popen[str]:
    path = os.pathsep.join(part for part in sys.path if part)
    return subprocess.Popen(
        [sys.executable, "-m", "optdsl", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path},
        **how,
    )  # fmt: skip


def evaluations(store: Path) -> int:
    """How many rows there are, seen while another program writes."""
    if not store.is_file():
        return 0
    db = sqlite3.connect(f"file:{store}?mode=ro", uri=True)
    try:
        return int(db.execute("SELECT COUNT(*) FROM evaluations").fetchone()[0])
    except sqlite3.OperationalError:  # the tables are not there yet
        return 0
    finally:
        db.close()


def test_ctrl_c_ends_with_a_report_and_the_same_command_goes_on(tmp_path: Path) -> None:
    store = tmp_path / "run.db"
    with start(*command(store, "--evaluations", "100000")) as running:
        for _ in range(1200):
            if evaluations(store) >= 3 or running.poll() is not None:
                break
            time.sleep(0.1)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=60)
    assert running.returncode == 130, err
    assert "Best structures of the search" in out
    assert "not finished" in out
    assert out.endswith("interrupted: the same command goes on from here\n")
    assert "Traceback" not in err
    assert "a second" in err  # lines of progress, where there is no terminal
    before = evaluations(store)
    assert before >= 3
    with start(*command(store, "--evaluations", str(before + 2), "--no-proof")) as running:
        out, err = running.communicate(timeout=120)
    assert running.returncode == 0, err
    assert evaluations(store) == before + 2
    with Store(store, write=False) as found:
        assert found.settings["tasks"] == ["regression/small"]
        assert found.phase == "search"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--from", "adamm"], "did you mean `adam`"),
        (["--from", "cocob"], "cannot start from `cocob`"),
        (["--from", "ademamix"], "cannot start from `ademamix`: it has more than 40 statements"),
        (["--tasks", "digits"], "there is no task `digits`: digits_mlp"),
        (["--budget", "soon"], "`soon` is no time: write 90s, 30m or 2h"),
        (["--budget", "0m"], "`0m` is no time"),
        (["--evaluations", "0"], "`0` is not a whole number above 0"),
        (["--arm", "luck"], "invalid choice: 'luck'"),
        (["--population", "1"], "at least two members"),
        (["--scheduler", "tcp://127.0.0.1:1"], "`--scheduler` goes with `--executor dask`"),
        (["--executor", "slurm"], "invalid choice: 'slurm'"),
        (["--seed", "-1"], "a seed is not negative"),
        (["--objectives", "speed"], "there is no objective `speed`: loss, state-bytes, step-bytes"),
        (["--objectives", "state-bytes"], "without it a rule that does nothing is best"),
    ],
)
def test_what_is_wrong_with_a_request_is_said(
    arguments: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["search", "--store", str(tmp_path / "run.db"), *arguments]) == 2
    assert told in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_budget_that_ends_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The start is evaluated all the same, and there is a verdict; the same command gives it again."""
    for _ in range(2):
        assert cli.main(command(tmp_path / "run.db", "--budget", "0.01s")) == 0
        out, err = capsys.readouterr()
        assert "no candidate scored better than the start in the search" in out, err
    assert evaluations(tmp_path / "run.db") == 1


def test_no_more_workers_than_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    class Counted(Pool):
        def __init__(self, workers: int, *more: Any) -> None:
            made.append(workers)
            super().__init__(1, *more)

    monkeypatch.setattr("optdsl.search.command.Pool", Counted)
    for more in ("--ahead", "3"), ():
        arguments = command(
            tmp_path / "run.db", "--evaluations", "1", "--no-proof", "--workers", "100000", *more
        )
        assert cli.main(arguments) == 0
    assert made == [3, 8]


def test_a_store_that_the_machine_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "folder").mkdir()
    assert cli.main(command(tmp_path / "folder")) == 2
    assert f"the store {tmp_path / 'folder'} cannot be used: unable to open" in capsys.readouterr().err
    assert cli.main(["search", "--store", "mysql://me:secret@host/x"]) == 2
    told = capsys.readouterr().err
    assert "a store is a file, or postgresql://user@host/database, and not mysql://..." in told
    assert "secret" not in told


def test_a_store_is_needed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["search", "--from", "adamw"]) == 2
    assert "--store run.db" in capsys.readouterr().err
    for action in (["report"], ["export", "-o", str(tmp_path)]):
        assert cli.main(["search", action[0], str(tmp_path / "no.db"), *action[1:]]) == 2
        assert "there is no store" in capsys.readouterr().err


def test_tests_take_no_more_of_a_long_budget_than_they_need() -> None:
    assert for_search(600.0) == pytest.approx(360.0)
    assert for_search(8 * 3600.0) == 8 * 3600.0 - 900.0


def test_another_seed_is_another_run_of_a_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = tmp_path / "run.db"
    with Store(store) as made:
        made.begin(Settings(("sgd",), ("regression/small",), seed=3).plain(), {})
    assert cli.main(command(store, "--evaluations", "1", "--no-proof", "--seed", "4")) == 0
    assert f"run 2 of {store}, beside 1 more" in capsys.readouterr().err
    for more, seed, number in (([], "4", "2 (this one)"), (["--run", "1"], "3", "1 (this one)")):
        assert cli.main(["search", "report", str(store), *more]) == 0
        text = capsys.readouterr().out
        assert f"\n  seed         {seed}\n" in text
        assert f"\n  {number}  evolution  sgd     {seed}     search\n" in text
        assert f"  optdsl search report run.db --run {number[0]}\n" in text
    page = tmp_path / "report.html"
    assert cli.main(["search", "report", str(store), "-o", str(page)]) == 0
    assert page.read_text().count("Runs in this store") == 1
    assert cli.main(["search", "report", str(store), "--run", "3"]) == 2
    assert "has no run 3, but 1, 2" in capsys.readouterr().err


def test_a_missing_extra_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name: None if name == "scipy" else real(name))
        assert cli.main(command(tmp_path / "run.db", "--evaluations", "1")) == 2
    assert "a search needs scipy: pip install optdsl[search]" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert cli.main(command(tmp_path / "run.db", "--evaluations", "1", "--executor", "dask")) == 2
    assert "a cluster needs dask: pip install optdsl[cluster]" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "psycopg", None)
    for arguments in (["search", "--store"], ["search", "report"]):
        assert cli.main([*arguments, "postgresql://user:secret@127.0.0.1:1/name"]) == 2
        told = capsys.readouterr()
        assert "a store in PostgreSQL needs psycopg: pip install optdsl[postgres]" in told.err
        assert "secret" not in told.out + told.err
    assert not list(tmp_path.iterdir())


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["search", "--help"]) == 0
    text = capsys.readouterr().out
    assert "optdsl search --from adamw --budget 30m --store run.db" in text
    assert "optdsl search report run.db -o report.html" in text


def test_times() -> None:
    assert [seconds(t) for t in ("90", "90s", "1.5m", "2h")] == [90, 90, 90, 7200]
    for wrong in ("", "m", "-1s", "1d", "1h30m", "nan", "1e3"):
        with pytest.raises(ValueError, match="is no time"):
            seconds(wrong)


def test_lines_of_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    out = io.StringIO()
    with live.view(out) as tick:
        for step in range(4):
            now[0] += live.EVERY / 2
            tick(Progress(evaluations=step, here=step, seconds=2.0, counts={"all": 10, "new": 4}))
        tick(Progress(phase="fresh", text="1 of 8"))
    lines = out.getvalue().splitlines()
    assert len(lines) == 3  # two of the search, and one for what is new
    assert "2 evaluations, 1.00 a second; no result yet; 10 proposed, 6 answered by filters" in lines[1]
    assert lines[2] == "fresh: 1 of 8 measured"


def test_the_live_view_of_a_terminal() -> None:
    pytest.importorskip("rich")

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out = Terminal()
    with live.view(out) as tick:
        tick(Progress(evaluations=7, seconds=2.0, here=7, counts={"all": 10, "new": 4, "[jumps]": 5}))
    assert "7 evaluations" in out.getvalue()
    assert "[jumps] 5" in out.getvalue()
