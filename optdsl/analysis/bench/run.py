"""One call of the benchmark: every method on every case with every number of threads."""

from __future__ import annotations

import gc
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from optdsl.analysis.bench import machine
from optdsl.analysis.bench.cases import Case
from optdsl.analysis.bench.fresh import first_steps
from optdsl.analysis.bench.peers import (
    DTYPES,
    NATIVE,
    PEERS,
    Method,
    Missing,
    Traffic,
    optimizer,
    parameters,
    traffic,
    turn_of,
)
from optdsl.analysis.bench.results import REFERENCES, Measurement, Report, Run
from optdsl.analysis.bench.rounds import Limits, Turn, no_collection, quartiles, race
from optdsl.core.record import record

#: Time for one method on one case with one number of threads, where no number of rounds is asked for.
SECONDS = 20.0
#: No more memory than this is used on purpose, nor more than this part of what is free.
MEMORY, PART_OF_FREE = 10e9, 0.75
#: From so many bytes a step on, the bandwidth is measured in the same rounds.
LARGE = 100_000_000
_YARDSTICK = "bandwidth"


@record
class Settings:
    """What to measure. `repeat` is a number of rounds; `seconds` limits the time of a case, None: see SECONDS."""

    cases: Sequence[Case]
    threads: Sequence[int] = (1,)
    dtype: str = "f32"
    repeat: int | None = None
    seconds: float | None = None
    yardstick: int = machine.ELEMENTS

    def __post_init__(self) -> None:
        """Raises ValueError for more threads than the machine has cores."""
        cores = os.cpu_count()
        if cores is not None and max(self.threads) > cores:
            raise ValueError(f"{max(self.threads)} threads are too many: this machine has {cores} cores")

    @property
    def limits(self) -> Limits:
        """When the rounds of a case end."""
        if self.seconds is None:
            return Limits(SECONDS if self.repeat is None else math.inf, self.repeat)
        return Limits(self.seconds, self.repeat)


@record(frozen=False)
class Listener:
    """Who is told: `started` once what is common to all is known, `done` after every case, `progress` in between.

    `done` may be told of a case that an interruption cut short.
    """

    started: Callable[[Report], None] = lambda report: None
    done: Callable[[Measurement], None] = lambda measurement: None
    progress: Callable[[str], None] = lambda text: None


def bench(
    methods: Sequence[Method], settings: Settings, report: Report, listener: Listener | None = None
) -> None:
    """Measures everything and puts it into `report`, where it stays if a KeyboardInterrupt ends the work."""
    listener = listener or Listener()
    report.settings = {
        "methods": {method.name: _plain(method.options) for method in methods},
        "cases": [case.label for case in settings.cases],
        "threads": list(settings.threads),
        "dtype": settings.dtype,
        "repeat": settings.repeat,
        "seconds_per_case": None if math.isinf(settings.limits.seconds) else settings.limits.seconds,
    }
    before = torch.get_num_threads()
    try:
        listener.progress("looking at the machine")
        report.machine = machine.facts()
        for threads in settings.threads:
            listener.progress(f"bandwidth, {threads} threads")
            torch.set_num_threads(threads)
            report.bandwidth[threads] = machine.bandwidth(settings.yardstick)
        listener.started(report)
        for method in methods:
            for case in settings.cases:
                for threads in settings.threads:
                    torch.set_num_threads(threads)
                    _measure(method, case, threads, settings, report, listener)
                _first_steps(method, case, report, listener)
    except KeyboardInterrupt:
        report.interrupted = True
        raise
    finally:
        torch.set_num_threads(before)


def _measure(
    method: Method, case: Case, threads: int, settings: Settings, report: Report, listener: Listener
) -> None:
    """Adds one measurement to the report."""
    label = f"{method.name}, {case.label}, {threads} {'thread' if threads == 1 else 'threads'}"
    listener.progress(label)
    dtype = DTYPES[settings.dtype]
    room = _room()
    need = traffic(method, [torch.empty(shape, dtype=dtype, device="meta") for shape in case.shapes])
    measurement = Measurement(
        *(method.name, method.cls.__name__, case, settings.dtype, threads, need.moved),
        bandwidth=report.bandwidth[threads][machine.ONE_ARRAY],
        runs={peer: Run() for peer in PEERS},
    )
    report.measurements.append(measurement)
    own = case.elements * dtype.itemsize
    common = (5 + case.new_gradients) * own  # parameters, gradients, and what a foreach step holds meanwhile
    if common + 2 * need.states > room:
        least = (common + 2 * need.states) / 1e9
        reason = f"two peers need {least:.1f} GB of memory, and {room / 1e9:.1f} GB may be used"
        for run in measurement.runs.values():
            run.missing = reason
        listener.done(measurement)
        return
    params = parameters(case, dtype)
    yardstick = machine.Yardstick(settings.yardstick) if need.moved >= LARGE else None
    watch = _Watch(measurement, label, listener)
    number = 0
    try:
        for batch in _batches(measurement, need, room - common):
            turns = _ready(batch, method, params, measurement, listener, label)
            if yardstick is not None:
                turns[_YARDSTICK] = yardstick.turn
            number = race(turns, watch, settings.limits, number)
            turns.clear()
            gc.collect()  # optimizers are parts of cycles
    finally:  # of an interrupted measurement, what there is
        if yardstick is not None and watch.yardstick.seconds:
            _, median, _ = quartiles(list(watch.yardstick.seconds.values()))
            measurement.bandwidth = yardstick.bytes / median
        listener.done(measurement)


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as JSON takes them, which has no infinity."""
    return {
        name: repr(value) if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in options.items()
    }


def _room() -> float:
    """Bytes that may be used."""
    free = machine.free_bytes()
    return MEMORY if free is None else min(MEMORY, PART_OF_FREE * free)


def _batches(measurement: Measurement, need: Traffic, room: float) -> Iterator[list[str]]:
    """The peers in parts whose states fit into `room`, the reference in every part: in one unless memory is short."""
    fit = max(2, int(room // max(1, need.states)))
    left = list(PEERS)
    if fit < len(left):  # candidates for the reference first
        left.sort(key=lambda name: REFERENCES.index(name) if name in REFERENCES else len(REFERENCES))
    while left:
        base = measurement.reference
        head = [] if base is None else [base]
        tail = left[: fit - len(head)]
        yield head + tail
        left = left[len(tail) :]


def _ready(
    batch: Sequence[str],
    method: Method,
    params: list[Tensor],
    measurement: Measurement,
    listener: Listener,
    label: str,
) -> dict[str, Turn]:
    """The peers of a part that can be had, after their first step."""
    turns: dict[str, Turn] = {}
    for name in batch:
        run = measurement.runs[name]
        listener.progress(f"{label}: first step of {name}")
        try:
            with no_collection():
                seconds, turn = _first(name, method, params, measurement.case.new_gradients)
        except Exception as error:
            run.missing = reason_of(error)
            continue
        if run.first is None:
            run.first = seconds
        turns[name] = turn
    return turns


def _first(peer: str, method: Method, params: list[Tensor], new_gradients: bool) -> tuple[float, Turn]:
    """Makes an optimizer and its first step: the seconds of both, and how it goes on."""
    start = time.perf_counter()
    made = optimizer(peer, method, params)
    middle = time.perf_counter()
    turn = turn_of(made, params, new_gradients)
    return middle - start + turn(1), turn


def reason_of(error: Exception) -> str:
    """One line that says why a peer cannot be had."""
    text = (str(error).strip().splitlines() or [""])[0]
    if isinstance(error, (Missing, RuntimeError, NotImplementedError)) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _first_steps(method: Method, case: Case, report: Report, listener: Listener) -> None:
    """Adds the first step of the native path in a new process, where fixed costs are measured."""
    native = report.measurements[-1].runs[NATIVE]
    if case.name == "one" and native.missing is None:
        listener.progress(f"{method.name}: first step in a new process")
        report.new_process[method.name] = first_steps(method.path, method.options)


class _Watch:
    """Puts the times of the rounds into a measurement."""

    def __init__(self, measurement: Measurement, label: str, listener: Listener) -> None:
        self.measurement, self.label, self.listener = measurement, label, listener
        self.yardstick = Run()

    def record(self, name: str, number: int, seconds: float) -> None:
        """Keeps the time of a turn."""
        run = self.yardstick if name == _YARDSTICK else self.measurement.runs[name]
        run.seconds[number] = seconds

    def failed(self, name: str, error: Exception) -> None:
        """Keeps why a peer is out."""
        if name in self.measurement.runs:
            run = self.measurement.runs[name]
            run.seconds.clear()
            run.missing = reason_of(error)

    def progress(self, rounds: int, seconds_left: float) -> None:
        """Shows how far the rounds are."""
        left = "" if math.isinf(seconds_left) else f", at most {max(0.0, seconds_left):.0f} s"
        self.listener.progress(f"{self.label}: {f'round {rounds}' if rounds else 'warming up'}{left}")


__all__ = ["MEMORY", "SECONDS", "Listener", "Settings", "bench", "reason_of"]
