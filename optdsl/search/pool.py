"""Processes that work on jobs within limits of time and memory: a job that hangs or eats memory is an outcome.

A job is a function that can be pickled, and its arguments. What it gives depends on these alone, so that neither the
number of workers nor the order in which they finish changes a result. A job whose worker dies (killed from outside,
say) is tried once more, then that is its outcome.

Workers are not forked but started anew, with one thread each, and by their own pipe: nothing of the main module of
the program runs in them. They end when the program does, whatever ends it.
"""

from __future__ import annotations

import collections
import contextlib
import importlib
import math
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any

from optdsl.core.record import field, record

#: What a worker's surroundings are: one thread, and an allocator that keeps memory for the next operation.
ENVIRONMENT = {
    **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(512 << 20),
    "MALLOC_TOP_PAD_": str(16 << 20),
}
#: How often a job is tried whose worker dies, and a worker is started that does not come up.
TRIES = 2
#: Seconds that a worker may take to begin.
STARTUP = 300.0


@record
class Limits:
    """`seconds` a job may take by the clock; `memory`, bytes that it may have beside what a worker begins with (None:
    as much as there is; kept on Linux only); `jobs` that a worker does before a new one takes its place.
    """

    seconds: float = 60.0
    memory: int | None = 2 << 30
    jobs: int = 500


@record
class Outcome:
    """What became of a job. `kind` is

    - "done": `value` is what it returned;
    - "error": it raised; `text` is the traceback;
    - "timeout": it was killed after `Limits.seconds`;
    - "memory": it asked for more than `Limits.memory`;
    - "died": its workers died, TRIES of them.

    `seconds` are those of the last attempt.
    """

    kind: str
    value: Any = None
    text: str = ""
    seconds: float = 0.0
    attempts: int = 1


class Broken(OSError):
    """Workers do not come up, or are gone."""


@record(frozen=False)
class _Job:
    number: int
    data: bytes
    attempts: int = 0


@record(frozen=False, eq=False)
class _Worker:
    process: subprocess.Popen[bytes]
    pipe: Connection
    ready: bool = False
    job: _Job | None = None
    begun: float = field(default_factory=time.monotonic)
    done: int = 0


class Pool:
    """`workers` processes. `preload` names modules that each imports before it takes jobs.

    Use it as a context, or call `close`. Not for several threads at once.
    """

    def __init__(self, workers: int = 1, limits: Limits | None = None, preload: Iterable[str] = ()) -> None:
        if workers < 1:
            raise ValueError("a pool has at least one worker")
        self.limits = limits or Limits()
        self.preload = tuple(preload)
        self._count = 0
        self._failures = 0
        self._jobs: collections.deque[_Job] = collections.deque()
        self._finished: collections.deque[tuple[int, Outcome]] = collections.deque()
        self._workers: list[_Worker] = []
        try:
            for _ in range(workers):
                self._workers.append(self._start())
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Pool:
        """The pool itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        """Ends the workers."""
        self.close()

    @property
    def processes(self) -> list[int]:
        """The process ids of the workers."""
        return [worker.process.pid for worker in self._workers]

    @property
    def open(self) -> int:
        """How many jobs are waiting or being worked on, or finished and not yet asked for."""
        busy = sum(worker.job is not None for worker in self._workers)
        return len(self._jobs) + busy + len(self._finished)

    def submit(self, function: Callable[..., Any], *args: Any) -> int:
        """Puts a job in the queue, and returns its number. Raises what pickling raises."""
        job = _Job(self._count, pickle.dumps((function, args)))
        self._count += 1
        self._jobs.append(job)
        self._hand_out()
        return job.number

    def next(self, timeout: float | None = None) -> tuple[int, Outcome] | None:
        """The number and outcome of a job that has finished, in the order in which they finish.

        None when there is none, at all or within `timeout` seconds. Raises Broken.
        """
        end = None if timeout is None else time.monotonic() + timeout
        while not self._finished:
            if not self.open:
                return None
            left = None if end is None else end - time.monotonic()
            if left is not None and left < 0:
                return None
            self._turn(left)
        return self._finished.popleft()

    def finished(self) -> Iterator[tuple[int, Outcome]]:
        """Numbers and outcomes until no job is left."""
        while (item := self.next()) is not None:
            yield item

    def map(self, function: Callable[..., Any], arguments: Iterable[tuple[Any, ...]]) -> list[Outcome]:
        """The outcome of `function` on each of `arguments`, in their order. No other job may be open."""
        if self.open:
            raise ValueError("other jobs are open")
        numbers = [self.submit(function, *args) for args in arguments]
        found = dict(self.finished())
        return [found[number] for number in numbers]

    def close(self) -> None:
        """Ends the workers at once; open jobs are forgotten."""
        for worker in self._workers:
            _end(worker)
        self._workers.clear()
        self._jobs.clear()

    # ---- workers -----------------------------------------------------------------------------------------

    def _start(self) -> _Worker:
        mine, theirs = socket.socketpair()
        code = f"from optdsl.search.pool import _work; _work({theirs.fileno()})"
        path = os.pathsep.join(part for part in sys.path if part)
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-c", code],
                env={**os.environ, **ENVIRONMENT, "PYTHONPATH": path},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # a job's prints would be between those of the program
                pass_fds=[theirs.fileno()],
            )
        pipe = Connection(mine.detach())
        worker = _Worker(process, pipe)
        with contextlib.suppress(BrokenPipeError):  # which shows in the next turn
            pipe.send((self.preload, self.limits.memory))
        return worker

    def _replace(self, worker: _Worker) -> None:
        _end(worker)
        self._workers[self._workers.index(worker)] = self._start()

    def _hand_out(self) -> None:
        for worker in list(self._workers):
            if worker.ready and worker.job is None and worker.done >= self.limits.jobs:
                self._replace(worker)
            elif worker.ready and worker.job is None and self._jobs:
                worker.job = self._jobs.popleft()
                worker.job.attempts += 1
                worker.begun = time.monotonic()
                try:
                    worker.pipe.send_bytes(worker.job.data)
                except OSError:
                    self._died(worker)

    def _turn(self, timeout: float | None) -> None:
        """Waits for a worker, or for the time of a job to run out."""
        self._hand_out()
        now = time.monotonic()
        ends = [worker.begun + self._limit(worker) - now for worker in self._workers]
        ends += [timeout] if timeout is not None else []
        found = wait([worker.pipe for worker in self._workers], min(max(0.0, min(ends)), STARTUP))
        for worker in list(self._workers):
            if worker.pipe in found:
                self._read(worker)
            elif time.monotonic() - worker.begun >= self._limit(worker):
                if worker.job is None:
                    worker.process.kill()
                    self._died(worker)
                else:
                    self._finish(worker, Outcome("timeout"))
                    self._replace(worker)
        self._hand_out()

    def _limit(self, worker: _Worker) -> float:
        """Seconds that what a worker does now may take."""
        if not worker.ready:
            return STARTUP
        return self.limits.seconds if worker.job is not None else math.inf

    def _read(self, worker: _Worker) -> None:
        try:
            message = worker.pipe.recv()
        except (EOFError, OSError):
            self._died(worker)
            return
        if message is None:
            worker.ready = True
            self._failures = 0
            return
        kind, value, text = message
        self._finish(worker, Outcome(kind, value, text))
        worker.done += 1
        if kind == "memory":  # it may be left with little
            self._replace(worker)

    def _finish(self, worker: _Worker, outcome: Outcome) -> None:
        job, worker.job = worker.job, None
        assert job is not None
        seconds = time.monotonic() - worker.begun
        done = Outcome(outcome.kind, outcome.value, outcome.text, seconds, job.attempts)
        self._finished.append((job.number, done))

    def _died(self, worker: _Worker) -> None:
        job = worker.job
        if job is None and not worker.ready:
            self._failures += 1
            if self._failures >= TRIES * len(self._workers):
                raise Broken(f"workers end before they begin, with exit status {worker.process.wait()}")
        elif job is not None and job.attempts < TRIES:
            worker.job = None
            self._jobs.appendleft(job)
        elif job is not None:
            status = worker.process.wait()
            self._finish(worker, Outcome("died", text=f"exit status {status}"))
        self._replace(worker)


def _end(worker: _Worker) -> None:
    worker.process.kill()
    worker.process.wait()
    worker.pipe.close()


# ---- in the worker ----------------------------------------------------------------------------------------


def _work(descriptor: int) -> None:
    """What a worker does: jobs from the pipe, until it is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the program decides what Ctrl-C means
    threading.Thread(target=_end_with_the_other_side, args=(descriptor,), daemon=True).start()
    pipe = Connection(descriptor)
    preload, memory = pipe.recv()
    for name in preload:
        importlib.import_module(name)
    if memory is not None:
        _limit_memory(memory)
    with contextlib.suppress(EOFError, BrokenPipeError):  # the other side has gone
        pipe.send(None)
        while True:
            pipe.send(_outcome(pipe.recv_bytes()))


def _outcome(data: bytes) -> tuple[str, Any, str]:
    """What comes of a job: kind, value, text. What cannot be pickled is an error of the job, too."""
    try:
        function, args = pickle.loads(data)
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(1)
        value = function(*args)
        pickle.dumps(value)
        return "done", value, ""
    except MemoryError as error:
        return "memory", None, str(error)
    except Exception as error:
        # torch has no error of its own for it
        kind = "memory" if "can't allocate memory" in str(error) else "error"
        return kind, None, traceback.format_exc()


def _limit_memory(memory: int) -> None:
    """At most so many bytes of addresses more than now. On Linux only, where these can be counted."""
    if not sys.platform.startswith("linux"):
        return
    import resource

    with open("/proc/self/statm", encoding="ascii") as file:
        pages = int(file.read().split()[0])
    most = pages * resource.getpagesize() + memory
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard != resource.RLIM_INFINITY:
        most = min(most, hard)
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))


def _end_with_the_other_side(descriptor: int) -> None:
    """Ends this process as soon as the other end of the pipe is closed, even in the middle of a job."""
    poll = select.poll()
    poll.register(descriptor, 0)  # for nothing but the end
    poll.poll()
    os._exit(1)
