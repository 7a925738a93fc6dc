"""What was measured, and what follows from it: medians, spreads, ratios, shares of the bandwidth."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from optdsl.analysis.bench.cases import Case
from optdsl.analysis.bench.rounds import quartiles
from optdsl.core.record import field, record

#: Whom the others are compared with: the first of these that could be had.
REFERENCES = ("torch fused", "torch foreach", "own foreach")


@record(frozen=False)
class Run:
    """One peer in one case: seconds of a step by round, and of its first step (a native build included).

    `missing` says why it could not be had.
    """

    seconds: dict[int, float] = field(default_factory=dict)
    first: float | None = None
    missing: str | None = None


@record
class Figures:
    """Median and quartiles of a step in seconds, of its ratio to the reference, and the share of the bandwidth."""

    median: float
    low: float
    high: float
    ratio: tuple[float, float, float] | None
    share: float | None

    @property
    def spread(self) -> float:
        """The interquartile range as a part of the median."""
        return (self.high - self.low) / self.median if self.median else 0.0


@record(frozen=False)
class Measurement:
    """One method on one case with so many threads. `bytes` is what a step of the native kernels moves.

    `bandwidth` is what the machine moved in place, in bytes a second, in the rounds of this case if the case
    is large, else at the start.
    """

    method: str
    title: str
    case: Case
    dtype: str
    threads: int
    bytes: int
    bandwidth: float
    runs: dict[str, Run] = field(default_factory=dict)

    @property
    def reference(self) -> str | None:
        """Whom the others are compared with."""
        return next((name for name in REFERENCES if name in self.runs and self.runs[name].seconds), None)

    def figures(self, name: str) -> Figures | None:
        """What is known of a peer; None before its first turn."""
        run = self.runs[name]
        if not run.seconds:
            return None
        low, median, high = quartiles(list(run.seconds.values()))
        share = self.bytes / median / self.bandwidth if median and self.bandwidth else None
        return Figures(median, low, high, self._ratio(run), share)

    def _ratio(self, run: Run) -> tuple[float, float, float] | None:
        """Lower quartile, median and upper quartile of the ratios to the reference, round by round."""
        if self.reference is None:
            return None
        base = self.runs[self.reference].seconds
        common = [second / base[number] for number, second in run.seconds.items() if base.get(number)]
        if common:
            return quartiles(common)
        _, theirs, _ = quartiles(list(base.values()))
        _, ours, _ = quartiles(list(run.seconds.values()))
        return (ours / theirs,) * 3 if theirs else None

    def as_json(self) -> dict[str, Any]:
        """Everything that is known, as JSON takes it."""
        return {
            "method": self.method,
            "class": self.title,
            "case": self.case.name,
            "what": self.case.what,
            "gradients": "new" if self.case.new_gradients else "fixed",
            "dtype": self.dtype,
            "threads": self.threads,
            "tensors": len(self.case.shapes),
            "elements": self.case.elements,
            "bytes_per_step": self.bytes,
            "bandwidth_bytes_per_s": self.bandwidth,
            "reference": self.reference,
            "peers": {name: self._peer_json(name) for name in self.runs},
        }

    def _peer_json(self, name: str) -> dict[str, Any]:
        run, found = self.runs[name], self.figures(name)
        if found is None:
            return {"first_s": run.first, "rounds": 0, "missing": run.missing}
        low, ratio, high = found.ratio or (None, None, None)
        return {
            "median_s": found.median,
            "low_s": found.low,
            "high_s": found.high,
            "spread": found.spread,
            "ratio": ratio,
            "ratio_low": low,
            "ratio_high": high,
            "share_of_bandwidth": found.share,
            "first_s": run.first,
            "rounds": len(run.seconds),
            "missing": None,
        }


@record
class FixedCost:
    """Seconds of a step of n tensors of hardly any elements: `step + n * tensor`."""

    method: str
    peer: str
    threads: int
    step: float
    tensor: float


@record(frozen=False)
class Report:
    """All of one call. `bandwidth` is by number of threads and yardstick, in bytes a second.

    `new_process` holds, by method, the seconds of the first step of the native path in a new process, with
    an empty and with a filled cache of builds, or why there are none.
    """

    machine: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    bandwidth: dict[int, dict[str, float]] = field(default_factory=dict)
    measurements: list[Measurement] = field(default_factory=list)
    new_process: dict[str, dict[str, Any]] = field(default_factory=dict)
    interrupted: bool = False

    def fixed_costs(self) -> Iterator[FixedCost]:
        """Of every peer that was measured on `one` and on `many`."""
        found = {(m.method, m.threads, m.case.label): m for m in self.measurements}
        for (method, threads, label), one in found.items():
            many = found.get((method, threads, "many"))
            if label != "one" or many is None:
                continue
            for peer in one.runs:
                first, second = one.figures(peer), many.figures(peer)
                if first is not None and second is not None:
                    more = len(many.case.shapes) - len(one.case.shapes)
                    tensor = (second.median - first.median) / more
                    yield FixedCost(method, peer, threads, first.median - tensor, tensor)

    def as_json(self) -> dict[str, Any]:
        """Everything that is known, as JSON takes it."""
        return {
            "machine": self.machine,
            "settings": self.settings,
            "bandwidth_bytes_per_s": {str(threads): found for threads, found in self.bandwidth.items()},
            "measurements": [found.as_json() for found in self.measurements],
            "fixed_costs": [
                {"method": c.method, "peer": c.peer, "threads": c.threads, "a_s": c.step, "b_s": c.tensor}
                for c in self.fixed_costs()
            ],
            "first_step_in_a_new_process": self.new_process,
            "interrupted": self.interrupted,
        }


__all__ = ["REFERENCES", "Figures", "FixedCost", "Measurement", "Report", "Run"]
