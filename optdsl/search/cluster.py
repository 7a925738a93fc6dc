"""Jobs done by a cluster of dask: the workers of this machine, or those of a scheduler that is running.

Dask only carries jobs to machines and results back, and gives the jobs of a worker that is gone to others. Each of
its threads has a pool with one process that does them: limits of time and memory, surroundings and outcomes are those
of the local pool, and so are the results, bit for bit, where machines round alike.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import platform
import queue
import signal
import threading
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError
from importlib.metadata import version
from types import TracebackType
from typing import Any

from optdsl import __version__
from optdsl.core.record import record
from optdsl.search.pool import STARTUP, Broken, Limits, Outcome, Pool


@record
class Order:
    """What every worker is to be like."""

    limits: Limits
    preload: tuple[str, ...]
    versions: tuple[tuple[str, str], ...]


def versions() -> tuple[tuple[str, str], ...]:
    """Of what decides how a job comes out."""
    python = ".".join(platform.python_version_tuple()[:2])
    return (
        ("optdsl", __version__),
        ("torch", version("torch")),
        ("numpy", version("numpy")),
        ("python", python),
    )


class Cluster:
    """`workers` processes of this machine, or the workers of the scheduler at an address such as tcp://host:8786.

    `preload` names modules that are imported before jobs are taken. Use it as a context, or call `close`. Raises
    ValueError where dask is missing, OSError where there is no scheduler, Broken where no worker comes up.
    """

    def __init__(
        self,
        workers: int = 1,
        scheduler: str | None = None,
        limits: Limits | None = None,
        preload: Iterable[str] = (),
    ) -> None:
        dask = _dask()
        self._order = Order(limits or Limits(), tuple(preload), versions())
        self._killed: type[Exception] = dask.KilledWorker
        self._session = uuid.uuid4().hex
        self._count = 0
        self._open: dict[int, Any] = {}
        self._finished: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._ends = contextlib.ExitStack()
        try:
            at: Any = scheduler
            if scheduler is None:
                # memory is the pools' to limit; pages of the scheduler are for this machine, at a port that is free
                local = dask.LocalCluster(
                    n_workers=workers, threads_per_worker=1, memory_limit=0, dashboard_address="127.0.0.1:0",
                    preload=[__name__],
                )  # fmt: skip
                at = self._ends.enter_context(local)
            self._client = self._ends.enter_context(dask.Client(at, set_as_default=False))
            self._ends.callback(self._leave)
            self._client.wait_for_workers(1, timeout=STARTUP)
        except TimeoutError:
            self.close()
            raise Broken(f"no worker has joined {scheduler or 'the cluster'} in {STARTUP:.0f} s") from None
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Cluster:
        """The cluster itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        """Leaves the cluster, and ends workers that this program has started."""
        self.close()

    @property
    def processes(self) -> list[int]:
        """The process ids of dask's workers, on their machines."""
        return list(self._client.run(os.getpid).values())

    @property
    def address(self) -> str:
        """That of the scheduler."""
        return str(self._client.scheduler.address)

    @property
    def open(self) -> int:
        """How many jobs are waiting or being worked on, or finished and not yet asked for."""
        return len(self._open)

    def submit(self, function: Callable[..., Any], *args: Any) -> int:
        """Puts a job in the queue, and returns its number. Raises what pickling raises."""
        number = self._count
        job = pickle.dumps((function, args))
        future = self._client.submit(_work, job, self._order, self._session, pure=False)
        self._count += 1
        self._open[number] = future
        future.add_done_callback(lambda _: self._finished.put(number))
        return number

    def next(self, timeout: float | None = None) -> tuple[int, Outcome] | None:
        """The number and outcome of a job that has finished, in the order in which they finish.

        None when there is none, at all or within `timeout` seconds. Raises Broken.
        """
        if not self._open:
            return None
        try:
            number = self._finished.get(timeout=timeout)
        except queue.Empty:
            return None
        future = self._open.pop(number)
        try:
            outcome: Outcome = future.result()
        except self._killed as error:
            return number, Outcome("died", text=str(error))
        except CancelledError:
            raise Broken("the scheduler of the cluster is gone") from None
        except Broken:
            raise
        except Exception as error:  # of dask, or of a worker that has no optdsl
            raise Broken(f"a worker cannot do jobs: {type(error).__name__}: {error}") from error
        if outcome.kind != "done":
            return number, outcome
        value = pickle.loads(outcome.value)
        return number, Outcome("done", value, outcome.text, outcome.seconds, outcome.attempts)

    def close(self) -> None:
        """Leaves the cluster; open jobs are forgotten."""
        self._open.clear()
        self._ends.close()

    def _leave(self) -> None:
        """Ends what is being worked on, which nobody waits for."""
        if self._client.status == "running":
            self._client.run(_forget, self._session, on_error="ignore")


def scheduler(given: str | None) -> str | None:
    """The address that was given, or that of dask's own configuration (DASK_SCHEDULER_ADDRESS), if there is one."""
    _dask()
    import dask

    found: str | None = given or dask.config.get("scheduler-address", None)
    return found


def _dask() -> Any:
    try:
        import distributed
    except ImportError:
        raise ValueError("a cluster needs dask: pip install optdsl[cluster]") from None
    return distributed


# ---- in dask's workers ------------------------------------------------------------------------------------


def dask_setup(worker: Any) -> None:
    """Dask's name for what workers that this program starts begin with: what Ctrl-C means is for it to decide."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


_mine = threading.local()
#: Programs that have left.
_left: set[str] = set()


def _forget(session: str) -> None:
    _left.add(session)


def _work(job: bytes, order: Order, session: str) -> Outcome:
    """What a thread of a worker does: has the job done by its process, which stays for the next one."""
    if other := [
        f"{name} {mine}, not {wanted}"
        for (name, mine), (_, wanted) in zip(versions(), order.versions, strict=True)
        if mine != wanted
    ]:
        raise Broken(f"a worker on {platform.node()} has {', '.join(other)}")
    if getattr(_mine, "order", None) != order:
        _drop()
        _mine.pool = Pool(1, order.limits, order.preload)
        _mine.order = order
    try:
        _mine.pool.submit(_call, job)
        while (item := _mine.pool.next(0.5)) is None:
            if session in _left:
                raise Broken("the program that asked for this has left")
    except BaseException:
        _drop()
        raise
    outcome: Outcome = item[1]
    return outcome


def _drop() -> None:
    """Ends the process of this thread, if it has one."""
    if (pool := _mine.__dict__.pop("pool", None)) is not None:
        pool.close()
    _mine.order = None


def _call(job: bytes) -> bytes:
    """In the process of that pool: what a job is and gives stays packed on its way."""
    function, args = pickle.loads(job)
    return pickle.dumps(function(*args))
