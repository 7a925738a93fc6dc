"""Jobs on a cluster of dask: the same as in the local pool, whoever is killed."""

from __future__ import annotations

import contextlib
import operator
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from optdsl import cli
from optdsl.search import cluster as clusters
from optdsl.search.engine import Progress
from optdsl.search.pool import Broken, Limits, Outcome
from optdsl.search.store import Store
from tests.search.test_command import command, evaluations, start
from tests.search.test_engine import TINY, content, engine
from tests.search.test_pool import alive, is_zombie

pytest.importorskip("distributed", reason="dask is missing: pip install optdsl[cluster]")
pytestmark = pytest.mark.xdist_group("cluster")

MB = 1 << 20


@pytest.fixture(scope="module")
def cluster() -> Iterator[clusters.Cluster]:
    """Two workers of this machine. A job is given to a second one, and not to a third."""
    import dask

    limits = Limits(seconds=60, memory=2 << 30)
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 1}),
        clusters.Cluster(2, limits=limits, preload=["tests.search.planted"]) as made,
    ):
        yield made


def outcomes(cluster: clusters.Cluster, jobs: list[tuple[Any, ...]]) -> list[Outcome]:
    numbers = [cluster.submit(*job) for job in jobs]
    found = {}
    while (item := cluster.next(300)) is not None:
        found[item[0]] = item[1]
    return [found[number] for number in numbers]


def test_one_of_two_workers_is_killed_and_the_search_is_that_of_no_cluster(
    cluster: clusters.Cluster, tmp_path: Path
) -> None:
    killed: list[int] = []

    def kill(progress: Progress) -> None:
        if progress.evaluations >= 3 and not killed:
            killed.append(cluster.processes[0])
            os.kill(killed[0], signal.SIGKILL)

    with Store(tmp_path / "dask.db") as store:
        made = engine(store, cluster, effort=TINY)
        made.search(evaluations=12, tick=kill)
    with Store(tmp_path / "here.db") as store:
        engine(store, effort=TINY).search(evaluations=12)
    assert killed
    assert content(tmp_path / "dask.db") == content(tmp_path / "here.db")
    assert killed[0] not in cluster.processes


def test_outcomes_are_those_of_the_local_pool(cluster: clusters.Cluster) -> None:
    """By a second program on the same cluster, with other limits."""
    call = operator.methodcaller("__call__", 3)
    jobs: list[tuple[Any, ...]] = [
        (time.sleep, 600),
        (call, os._exit),
        (bytes, 512 * MB),
        (operator.truediv, 1, 0),
        (memoryview, b"x"),
        (abs, -1),
    ]
    with clusters.Cluster(scheduler=cluster.address, limits=Limits(seconds=2.0, memory=256 * MB)) as other:
        hung, died, eaten, error, unsent, fine = outcomes(other, jobs)
        assert (hung.kind, hung.attempts) == ("timeout", 1)
        assert (died.kind, died.attempts, died.text) == ("died", 2, "exit status 3")
        assert eaten.kind == "memory"
        assert error.kind == "error"
        assert "ZeroDivisionError" in error.text
        assert unsent.kind == "error"
        assert (fine.kind, fine.value) == ("done", 1)
        assert other.next() is None


@pytest.mark.slow
def test_a_job_that_ends_its_workers_has_died(
    cluster: clusters.Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    with clusters.Cluster(scheduler=cluster.address) as other:
        with monkeypatch.context() as patch:
            patch.setattr(clusters, "_work", _end)
            deadly = other.submit(abs, -1)
        number, outcome = other.next(300) or (-1, None)
        assert (number, outcome and outcome.kind) == (deadly, "died")
        assert [o.value for o in outcomes(other, [(abs, -2)])] == [2]


def _end(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_what_is_being_done_for_a_program_ends_when_it_leaves(cluster: clusters.Cluster) -> None:
    limits = Limits(seconds=600.0)
    with clusters.Cluster(scheduler=cluster.address, limits=limits) as other:
        for _ in range(4):
            other.submit(time.sleep, 500)
        assert other.next(1.0) is None
    with clusters.Cluster(scheduler=cluster.address, limits=limits) as other:
        assert [o.value for o in outcomes(other, [(abs, n) for n in (-1, -2, -3)])] == [1, 2, 3]


def test_workers_with_other_versions_are_refused(
    cluster: clusters.Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clusters, "version", lambda name: "1.0")
    with clusters.Cluster(scheduler=cluster.address) as other:
        other.submit(abs, -1)
        with pytest.raises(Broken, match=r"has torch [^ ]*, not 1.0, numpy"):
            other.next(60)


def test_a_cluster_without_workers_and_one_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    import distributed

    with distributed.LocalCluster(n_workers=0, processes=False, dashboard_address="127.0.0.1:0") as local:
        with monkeypatch.context() as patch:
            patch.setattr(clusters, "STARTUP", 0.5)
            with pytest.raises(Broken, match=r"no worker has joined .* in 0 s"):
                clusters.Cluster(scheduler=local.scheduler_address)
        local.scale(1)
        with clusters.Cluster(scheduler=local.scheduler_address) as made, monkeypatch.context() as patch:
            patch.setattr(clusters, "_work", _slow)
            made.submit(abs, -1)
            assert made.next(0.5) is None
            local.close()
            with pytest.raises(Broken, match="the scheduler of the cluster is gone"):
                made.next(60)


def _slow(*_: Any) -> None:
    time.sleep(1.5)


def test_which_scheduler(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    import dask

    assert clusters.scheduler(None) is None
    with dask.config.set({"scheduler-address": "tcp://a:1"}):  # as DASK_SCHEDULER_ADDRESS does
        assert clusters.scheduler(None) == "tcp://a:1"
        assert clusters.scheduler("tcp://b:1") == "tcp://b:1"
    dasks = command(tmp_path / "run.db", "--executor", "dask", "--scheduler", "tcp://127.0.0.1:1")
    assert cli.main([*dasks, "--workers", "2"]) == 2
    told = capsys.readouterr().err
    assert "`--workers` are for this machine alone: a search takes all those of tcp://127.0.0.1:1" in told
    assert not list(tmp_path.iterdir())
    with dask.config.set({"distributed.comm.timeouts.connect": "1s"}):
        assert cli.main(dasks) == 2
    assert "tcp://127.0.0.1:1" in capsys.readouterr().err


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_ends_program_and_workers(tmp_path: Path) -> None:
    store = tmp_path / "run.db"
    arguments = command(store, "--evaluations", "100000", "--executor", "dask", "--workers", "1")
    with start(*arguments, process_group=0) as running:
        for _ in range(3000):
            if (seen := evaluations(store)) >= 2 or running.poll() is not None:
                break
            time.sleep(0.1)
        os.killpg(running.pid, signal.SIGINT)  # a terminal tells all of them
        out, err = running.communicate(timeout=60)
    assert seen >= 2
    assert running.returncode == 130, err
    assert out.endswith("interrupted: the same command goes on from here\n")
    assert "Traceback" not in err
    for _ in range(200):
        if not (left := of_group(running.pid)):
            return
        time.sleep(0.05)
    pytest.fail(f"these went on: {left}")


def of_group(number: int) -> list[str]:
    """What the processes of a group run."""
    if not Path("/proc/self/stat").exists():
        pytest.skip("there is no /proc")
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it may have ended by now
            state, _, group = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
            if int(group) == number and state != "Z":
                found.append((entry / "cmdline").read_text().replace("\0", " "))
    return found


@pytest.mark.slow
def test_workers_end_with_a_program_that_is_killed() -> None:
    script = (
        "import time\n"
        "from optdsl.search.cluster import Cluster\n"
        "if __name__ == '__main__':\n"
        "    cluster = Cluster(1)\n"
        "    cluster.submit(time.sleep, 600)\n"
        "    print(cluster.processes[0], flush=True)\n"
        "    time.sleep(600)\n"
    )
    path = os.pathsep.join(part for part in sys.path if part)
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path}
    ) as program:
        worker = int(program.stdout.readline())
        assert alive(worker)
        program.kill()
    for _ in range(200):
        if not alive(worker) or is_zombie(worker):
            return
        time.sleep(0.05)
    os.kill(worker, signal.SIGKILL)
    pytest.fail("the worker went on")
