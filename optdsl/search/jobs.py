"""What workers do for a search: a rule, tuned and measured on some tasks."""

from __future__ import annotations

import collections
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from optdsl.core.record import record
from optdsl.ir.program import Program
from optdsl.search.evaluate.printer import Unsupported
from optdsl.search.evaluate.train import Hurdle
from optdsl.search.evaluate.tune import LENGTH, Effort, Tuned, tune
from optdsl.search.pool import Outcome
from optdsl.search.tasks import Task


class Executor(Protocol):
    """Where jobs are done: `optdsl.search.pool.Pool`, `optdsl.search.cluster.Cluster`, or `Inline`."""

    def submit(self, function: Callable[..., Any], *args: Any) -> int:
        """Puts a job in the queue, and returns its number."""

    def next(self, timeout: float | None = None) -> tuple[int, Outcome] | None:
        """The number and outcome of a job that has finished, or None."""


class Inline:
    """Does jobs in this process, without limits, when it is asked for the next outcome."""

    def __init__(self) -> None:
        self._count = 0
        self._jobs: collections.deque[tuple[int, Callable[..., Any], tuple[Any, ...]]] = collections.deque()

    def submit(self, function: Callable[..., Any], *args: Any) -> int:
        """Puts a job in the queue, and returns its number."""
        self._jobs.append((self._count, function, args))
        self._count += 1
        return self._count - 1

    def next(self, timeout: float | None = None) -> tuple[int, Outcome] | None:
        """Does the next job; None if there is none."""
        if not self._jobs:
            return None
        number, function, args = self._jobs.popleft()
        try:
            return number, Outcome("done", function(*args))
        except Exception:
            return number, Outcome("error", text=traceback.format_exc())


@record
class Begin:
    """What is known of a rule on a task before it is tuned: constants, the length of a step to begin with, what runs
    must have reached, and the mean log loss beyond which no other task is tried.
    """

    values: Mapping[str, float] | None = None
    length: float = LENGTH
    hurdle: Hurdle | None = None
    limit: float = float("inf")


@record
class Assessed:
    """A rule on the tasks that were tried, in their order; `moved` are bytes per parameter of a step."""

    tuned: tuple[Tuned, ...]
    moved: float | None


def assess(
    program: Program,
    tasks: Sequence[Task],
    effort: Effort,
    seed: int,
    begin: Mapping[str, Begin],
    names: Sequence[str] | None = None,
) -> Assessed:
    """Tunes a rule on one task after the other, until it is beyond the limit of one."""
    found = []
    for number, task in enumerate(tasks):
        known = begin.get(task.name) or Begin()
        tuned = tune(
            program,
            task,
            effort,
            seed=seed * 64 + number,
            start=known.values,
            names=names,
            hurdle=known.hurdle,
            middle=known.length,
            near=known.values is not None,
        )
        found.append(tuned)
        if not tuned.dead and float(tuned.logs.mean()) <= known.limit:
            continue
        break
    return Assessed(tuple(found), moved(program))


def moved(program: Program) -> float | None:
    """Bytes per parameter that a usual step of the native kernels reads and writes; None where there is no plan.

    Without the algebra of the pipeline: it takes longer than training does, and looks at the clock.
    """
    from optdsl.analysis.explain import explain
    from optdsl.analysis.setting import Setting
    from optdsl.passes.simplify import drop_unused, simplify

    found = explain(program, drop_unused(simplify(program)), Setting())
    return float(found.usual.account.moved) if found.plans else None


__all__ = ["Assessed", "Begin", "Executor", "Inline", "Unsupported", "assess", "moved"]
