"""Timing by turns: A B C, A B C and so on, so that what disturbs the machine disturbs all alike."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol, TypeAlias

from optdsl.core.record import record

#: Makes so many steps; the seconds that one took.
Turn: TypeAlias = Callable[[int], float]

#: Rounds before anything is counted: fewer, but one, if they take longer than so many seconds.
WARM_UP, WARM_UP_SECONDS = 5, 2.0
#: Every contestant has at least so many turns, and ordinarily no more than so many.
LEAST, MOST = 3, 500
#: A turn of very short steps has so many that it lasts about this long, but no more than so many.
TURN_SECONDS, TURN_STEPS = 2e-3, 100
#: The turn of a step shorter than this begins with one that is not counted: it brings back what others took from
#: the caches.
LEAD_IN_SECONDS = 20e-3
#: A median is known when its uncertainty is this part of it, after at least so many turns.
PRECISION, PRECISE_AFTER = 0.005, 15
#: A contestant whose turn takes this much longer than the shortest sits out rounds, seven of eight at most.
SLOW, LONGEST_PAUSE = 4.0, 8


@record
class Limits:
    """When to stop: after `repeat` rounds in which all take part, or when the time is up or enough is known."""

    seconds: float
    repeat: int | None = None


class Watch(Protocol):
    """Who is told what happens."""

    def record(self, name: str, number: int, seconds: float) -> None:
        """A step of `name` took `seconds` in round `number`."""

    def failed(self, name: str, error: Exception) -> None:
        """`name` could not make a step, and is out."""

    def progress(self, rounds: int, seconds_left: float) -> None:
        """So many rounds are done."""


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile of at least one number."""
    if len(values) == 1:
        return (values[0],) * 3
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def settled(values: Sequence[float]) -> bool:
    """Whether the median is known well enough."""
    if len(values) < PRECISE_AFTER:
        return False
    low, middle, high = quartiles(values)
    return 1.57 * (high - low) <= PRECISION * middle * math.sqrt(len(values))


@contextmanager
def no_collection() -> Iterator[None]:
    """Keeps Python's garbage collector out of what is timed."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


def race(
    turns: Mapping[str, Turn],
    watch: Watch,
    limits: Limits,
    first_round: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> int:
    """Lets all take turns, and tells `watch`. Rounds are counted from `first_round`; the next number."""
    turns = dict(turns)

    def take(name: str, steps: int) -> float | None:
        try:
            return turns[name](steps)
        except Exception as error:
            del turns[name]
            watch.failed(name, error)
            return None

    begin = clock()
    end = begin + limits.seconds
    steps: dict[str, int] = {}
    pause: dict[str, int] = {}
    with no_collection():
        lasts: dict[str, float] = {}
        for _ in range(WARM_UP):
            for name in list(turns):
                last = take(name, 1)
                if last is not None:
                    lasts[name] = last
            watch.progress(0, end - clock())
            if clock() - begin > min(WARM_UP_SECONDS, 0.1 * limits.seconds):
                break
        if not turns:
            return first_round
        for name in turns:
            steps[name] = max(1, min(TURN_STEPS, int(TURN_SECONDS / max(lasts[name], 1e-9))))
        shortest = min(steps[name] * lasts[name] for name in turns)
        for name in turns:
            longer = steps[name] * lasts[name] / (SLOW * max(shortest, 1e-9))
            pause[name] = 1 if limits.repeat else max(1, min(LONGEST_PAUSE, int(longer)))
        seen: dict[str, list[float]] = {name: [] for name in turns}
        for number in range(limits.repeat or MOST):
            late = clock() > end
            for name in list(turns):
                if late or number % pause[name] == 0:
                    if lasts[name] < LEAD_IN_SECONDS and take(name, 1) is None:
                        continue
                    seconds = take(name, steps[name])
                    if seconds is not None:
                        seen[name].append(seconds)
                        watch.record(name, first_round + number, seconds)
            watch.progress(number + 1, end - clock())
            taken = [seen[name] for name in turns]
            if all(len(values) >= LEAST for values in taken) and clock() > end:
                break
            if limits.repeat is None and all(map(settled, taken)):
                break
    return first_round + number + 1


__all__ = ["Limits", "Turn", "Watch", "no_collection", "quartiles", "race", "settled"]
