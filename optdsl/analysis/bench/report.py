"""What was measured as a table for the screen, as JSON and as a picture."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable, Sequence

from optdsl.analysis.bench.results import Figures, FixedCost, Measurement, Report

_HEAD = ("peer", "median", "spread", "ratio", "of bandwidth", "first step", "rounds")
#: The share of the bandwidth says nothing of steps that move less than this.
_SHARE_FROM = 1_000_000


def seconds(value: float) -> str:
    """A time in the unit that suits it."""
    for unit, factor in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if abs(value) >= factor or unit == "us":
            scaled = value / factor
            digits = 2 if abs(scaled) < 9.995 else 1 if abs(scaled) < 99.95 else 0
            return f"{scaled:.{digits}f} {unit}"
    raise AssertionError


def amount(value: float) -> str:
    """A number of bytes in the unit that suits it."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= factor:
            return f"{value / factor:.3g} {unit}"
    return f"{value:.0f} B"


def count(number: int, noun: str) -> str:
    """`1 thread`, `2 threads`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def header(report: Report) -> str:
    """Lines on the machine, in front of all tables."""
    facts = report.machine
    lines = [
        f"{facts['cpu']}, {count(facts['cores'], 'core')}; torch {facts['torch']}; "
        f"{facts['compiler'] or 'no C compiler found'}; {facts['date']}"
    ]
    for threads, found in report.bandwidth.items():
        speeds = ", ".join(f"{name} {speed / 1e9:.1f} GB/s" for name, speed in found.items())
        lines.append(f"bandwidth in place, {count(threads, 'thread')}: {speeds}")
    if facts.get("load") and facts["load"] > 0.5 * facts["cores"]:
        lines.append(
            f"other work runs on this machine (load {facts['load']:.1f}): do not trust small differences"
        )
    return "\n".join(lines)


def table(measurement: Measurement) -> str:
    """One measurement: a title and a line for every peer; why a peer is missing stands in its line."""
    m = measurement
    rows: list[tuple[str, ...]] = [_HEAD]
    notes: dict[int, str] = {}
    for name, run in m.runs.items():
        found = m.figures(name)
        if found is None:
            rows.append((name, "n/a" if run.missing else "-", *[""] * 5))
            notes[len(rows) - 1] = run.missing or "not measured"
            continue
        first = "" if run.first is None else seconds(run.first)
        cells = (seconds(found.median), f"{100 * found.spread:.1f} %", *_relative(m, found), first)
        rows.append((name, *cells, str(len(run.seconds))))
    lines = [_title(m), *aligned(rows, notes)]
    return "\n".join(lines)


def _title(m: Measurement) -> str:
    compared = f"; ratio to {m.reference}" if m.reference else ""
    gradients = ", new gradients in every step" if m.case.new_gradients else ""
    return (
        f"{m.method}, {m.case.name}: {m.case.what}{gradients}, {m.dtype}, {count(m.threads, 'thread')}, "
        f"{amount(m.bytes)} a step{compared}"
    )


def _relative(m: Measurement, found: Figures) -> tuple[str, str]:
    ratio = "" if found.ratio is None else f"{found.ratio[1]:.3f}"
    share = "" if found.share is None or m.bytes < _SHARE_FROM else f"{100 * found.share:.0f} %"
    return ratio, share


def aligned(rows: Sequence[Sequence[str]], notes: dict[int, str] | None = None) -> list[str]:
    """Lines with columns: the first to the left, the others to the right. A note ends its line."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for number, row in enumerate(rows):
        cells = [row[0].ljust(widths[0]), *(x.rjust(w) for x, w in zip(row[1:], widths[1:], strict=True))]
        note = (notes or {}).get(number)
        if note is not None:
            cells = [*cells[:2], note]
        lines.append(("  " + "  ".join(cells)).rstrip())
    return lines


def closing(report: Report) -> str:
    """Lines behind all tables: fixed costs, and the first step in a new process. Empty if there are none."""
    lines: list[str] = []
    costs = list(report.fixed_costs())
    for method, threads in dict.fromkeys((c.method, c.threads) for c in costs):
        chosen = [c for c in costs if (c.method, c.threads) == (method, threads)]
        lines += [f"{method}, fixed cost of step(), {count(threads, 'thread')}", *_fixed(chosen)]
    for method, found in report.new_process.items():
        if "missing" in found:
            lines.append(f"{method}, first step of own native in a new process: n/a, {found['missing']}")
        else:
            empty, filled = seconds(found["empty_cache_s"]), seconds(found["filled_cache_s"])
            lines.append(
                f"{method}, first step of own native in a new process: {empty} with a build, {filled} without"
            )
    return "\n".join(lines)


def _fixed(costs: Iterable[FixedCost]) -> list[str]:
    rows = [("peer", "a step", "and a tensor")]
    rows += [(c.peer, seconds(c.step), seconds(c.tensor)) for c in costs]
    return aligned(rows)


def to_json(report: Report) -> str:
    """All of it."""
    return json.dumps(report.as_json(), indent=1) + "\n"


# ---- the picture ------------------------------------------------------------------------------------------

_COLOURS = {"own": "#2a6fbb", "torch": "#b0b0b0"}


class NoMatplotlib(Exception):
    """There is no matplotlib to draw with."""


def plot(report: Report, method: str) -> bytes | None:
    """A PNG with a panel of bars for every measurement of a method; None if nothing of it was measured."""
    found = [m for m in report.measurements if m.method == method and m.reference is not None]
    if not found:
        return None
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import FuncFormatter, NullFormatter
    except ImportError as error:
        raise NoMatplotlib(str(error)) from None
    columns = min(2, len(found))
    lines = math.ceil(len(found) / columns)
    figure = Figure(figsize=(6.4 * columns, 0.6 + 2.4 * lines), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{method}: time of a step, {found[0].dtype}, {report.machine['cpu']}", fontsize=11)
    for number, m in enumerate(found):
        axes = figure.add_subplot(lines, columns, number + 1)
        peers = [(name, m.figures(name)) for name in m.runs]
        ratios = [f.ratio[1] for _, f in peers if f is not None and f.ratio is not None]
        low, high = min([*ratios, 1.0]), max([*ratios, 1.0])
        axes.set_xscale("log")
        axes.set_xlim(low / 1.3, high * max(2.0, (high / low) ** 0.4))  # room for the numbers
        axes.set_ylim(len(peers) - 0.4, -0.6)
        for place, (name, figures) in enumerate(peers):
            if figures is None or figures.ratio is None:
                axes.text(1.05, place, "n/a", va="center", fontsize=8, color="#707070")
                continue
            colour = _COLOURS[name.split()[0]]
            axes.barh(place, figures.ratio[1] - 1.0, left=1.0, color=colour, height=0.7)
            axes.text(
                max(figures.ratio[1], 1.0) * 1.05,
                place,
                f"{figures.ratio[1]:.2f}  ({seconds(figures.median)})",
                va="center",
                fontsize=8,
            )
        axes.axvline(1.0, color="#404040", linewidth=0.8)
        axes.set_yticks(range(len(peers)), [name for name, _ in peers], fontsize=8)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.tick_params(axis="x", labelsize=8)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        axes.set_title(f"{m.case.label}: {m.case.what}, {count(m.threads, 'thread')}", fontsize=9)
        axes.set_xlabel(f"ratio to {m.reference}", fontsize=8)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=120)
    return data.getvalue()


__all__ = [
    "NoMatplotlib",
    "aligned",
    "amount",
    "closing",
    "count",
    "header",
    "plot",
    "seconds",
    "table",
    "to_json",
]
