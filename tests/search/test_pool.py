"""The pool of processes: what becomes of jobs that hang, eat memory, raise, or lose their worker."""

import math
import operator
import os
import signal
import subprocess
import sys
import time

import pytest

from optdsl.search import tasks
from optdsl.search.evaluate import tune
from optdsl.search.pool import Broken, Limits, Pool

MB = 1 << 20


@pytest.fixture(scope="module")
def pool():
    with Pool(1, Limits(memory=256 * MB)) as pool:
        yield pool


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_results_come_in_the_order_of_the_arguments(pool: Pool) -> None:
    found = pool.map(math.factorial, [(n,) for n in range(20)])
    assert [o.value for o in found] == [math.factorial(n) for n in range(20)]
    assert {(o.kind, o.attempts) for o in found} == {("done", 1)}
    assert pool.next() is None
    assert pool.open == 0


def test_a_job_that_hangs_is_killed_and_the_next_one_is_done() -> None:
    with Pool(1, Limits(seconds=1.0)) as pool:
        (before,) = pool.processes
        hung, fine = pool.map(operator.methodcaller("__call__", 600), [(time.sleep,), (math.sqrt,)])
    assert hung.kind == "timeout"
    assert hung.attempts == 1
    assert 1.0 <= hung.seconds < 60
    assert fine.value == math.sqrt(600)
    assert not alive(before)


def test_a_job_that_eats_memory_is_an_outcome(pool: Pool) -> None:
    (before,) = pool.processes
    small, eaten, after = pool.map(bytes, [(64 * MB,), (512 * MB,), (64 * MB,)])
    assert small.value == after.value == bytes(64 * MB)
    assert eaten.kind == "memory"
    assert not alive(before)  # a worker that is short of memory is not used again


def test_an_error_comes_with_its_traceback(pool: Pool) -> None:
    (found,) = pool.map(operator.truediv, [(1, 0)])
    assert found.kind == "error"
    assert "ZeroDivisionError" in found.text
    # what cannot be sent back is an error of the job, and the worker goes on
    (found,) = pool.map(memoryview, [(b"x",)])
    assert found.kind == "error"
    assert pool.map(abs, [(-1,)])[0].value == 1


def test_a_job_whose_worker_is_killed_is_tried_again() -> None:
    with Pool(1, Limits(seconds=60)) as pool:
        pool.map(abs, [(1,)])
        (first,) = pool.processes
        pool.submit(time.sleep, 2.0)
        assert pool.next(0.1) is None
        os.kill(first, signal.SIGKILL)
        number, found = pool.next(30)
        assert (number, found.kind, found.attempts) == (1, "done", 2)
        assert pool.processes != [first]


def test_a_job_that_kills_its_worker_twice_has_died() -> None:
    with Pool(2, Limits(seconds=60)) as pool:
        found = pool.map(operator.methodcaller("__call__", 3), [(os._exit,), (abs,), (os._exit,), (abs,)])
    assert [o.kind for o in found] == ["died", "done", "died", "done"]
    assert [o.attempts for o in found] == [2, 1, 2, 1]
    assert found[0].text == "exit status 3"


def test_a_worker_is_replaced_after_its_share_of_jobs() -> None:
    with Pool(1, Limits(jobs=3)) as pool:
        found = [o.value for o in pool.map(os.getpid, [()] * 7)]
    assert [found.count(pid) for pid in dict.fromkeys(found)] == [3, 3, 1]


def test_jobs_come_back_as_they_finish_and_nothing_is_left_behind() -> None:
    with Pool(2, Limits(seconds=60)) as pool:
        slow = pool.submit(time.sleep, 4.0)
        quick = [pool.submit(abs, n) for n in range(-5, 0)]
        order = [number for number, _ in pool.finished()]
        processes = pool.processes
    assert order == [*quick, slow]
    assert not any(map(alive, processes))


def test_workers_have_one_thread_and_the_path_of_the_program() -> None:
    with Pool(1) as pool:
        threads, path = (
            o.value
            for o in pool.map(
                eval, [("__import__('os').environ['OMP_NUM_THREADS']",), ("__import__('sys').path",)]
            )
        )
    assert threads == "1"
    assert {part for part in sys.path if part} <= set(path)


def test_a_worker_that_cannot_begin_is_an_error_of_the_pool(capfd: pytest.CaptureFixture[str]) -> None:
    with Pool(1, preload=["no_such_module"]) as pool, pytest.raises(Broken, match="exit status 1"):
        pool.map(abs, [(1,)])
    assert "no_such_module" in capfd.readouterr().err


def test_workers_end_with_the_program_even_in_the_middle_of_a_job() -> None:
    script = (
        "import time, sys\n"
        "from optdsl.search.pool import Pool\n"
        "pool = Pool(1)\n"
        "pool.map(abs, [(1,)])\n"
        "pool.submit(time.sleep, 600)\n"
        "print(pool.processes[0], flush=True)\n"
        "time.sleep(600)\n"
    )
    path = os.pathsep.join(part for part in sys.path if part)
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path}
    ) as program:
        worker = int(program.stdout.readline())
        assert alive(worker)
        program.kill()
    for _ in range(100):
        if not alive(worker) or is_zombie(worker):
            return
        time.sleep(0.05)
    os.kill(worker, signal.SIGKILL)
    pytest.fail("the worker went on")


def is_zombie(pid: int) -> bool:
    """Nobody may be there to collect an orphan."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:
            return file.read().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_an_evaluation_is_the_same_in_every_worker() -> None:
    """Goal S4: whoever does it, and in whatever order, bit for bit."""
    effort = tune.Effort(configurations=6, tuning=(0,), fresh=(100, 101))
    program = tune.rule("adamw")
    jobs = [
        (program, tasks.task(name), effort) for name in ("zipf/small", "regression/small", "logistic/small")
    ]
    preload = ["optdsl.search.evaluate.tune"]
    with Pool(2, preload=preload) as pool:
        found = pool.map(tune.tune, jobs[::-1])[::-1]
    assert [o.kind for o in found] == ["done"] * 3
    assert [o.value for o in found] == [tune.tune(*job) for job in jobs]


def test_a_worker_that_never_begins_is_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    (tmp_path / "endless_module.py").write_text("import time\ntime.sleep(600)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("optdsl.search.pool.STARTUP", 1.0)
    with Pool(1, preload=["endless_module"]) as pool, pytest.raises(Broken, match="exit status -9"):
        pool.map(abs, [(1,)])


def test_a_pool_has_workers() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Pool(0)
